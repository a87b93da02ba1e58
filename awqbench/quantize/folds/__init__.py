"""Which module can absorb which linears' input scales: traced, probed, proven, applied."""
