"""A small checkpoint that listens: a drawn world, and the training of tiny Wan2.1 networks on it."""
