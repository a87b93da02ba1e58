"""The search of one block: scales, ranges, rounding, and the rules that single linears have."""
