"""What configurations say about a quantized folder, read and written."""
