"""Transformers in 8 bits, and the twins that they are compared with."""
