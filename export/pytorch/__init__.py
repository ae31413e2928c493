"""A pipeline on PyTorch in one process: the modules that are exported, on the weights of a checkpoint."""
