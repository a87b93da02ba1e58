"""Look at models without changing a weight: health, evaluation, pre-flight."""
