"""The parameters of one stream: which values are valid, and what becomes of them over time."""
