"""What a pipeline's weights are before anything reads them: files, sizes, memory. Torch-free."""
