"""Records of this and other machines: one JSON object a line, sealed, and comparable."""
