"""What a folder holds, and how two folders differ."""
