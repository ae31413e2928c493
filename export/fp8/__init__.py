"""Transformers in 8 bits, and the references that they are compared with."""
