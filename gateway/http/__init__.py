"""How a request is read, and refused for its form: bodies, queries, names, files."""
