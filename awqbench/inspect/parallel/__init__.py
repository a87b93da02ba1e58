"""Tensor parallelism: shapes by config, engine rules, padding, simulated splits."""
