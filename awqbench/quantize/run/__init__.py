"""A run over all blocks: its folder, memory, devices, workers, and the checkpoint at the end."""
