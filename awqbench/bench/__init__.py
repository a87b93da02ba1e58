"""How fast: machine records, timing, rooflines."""
