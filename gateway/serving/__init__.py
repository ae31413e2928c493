"""What makes chunks: Triton, its engines, and the memory that they need."""
