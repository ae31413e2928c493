"""The edge to Triton: requests in, chunks out."""
