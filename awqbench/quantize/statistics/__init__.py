"""A text's way through the model, and the sums over what enters its linears, kept on disk."""
