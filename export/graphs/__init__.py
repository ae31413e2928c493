"""Export-ready PyTorch modules with explicit caches."""
