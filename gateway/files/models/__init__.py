"""Model files: which a pipeline needs, and downloading them."""
