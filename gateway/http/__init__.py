"""How a request is read and refused: bodies, queries, names, origins, tokens."""
