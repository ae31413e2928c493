"""One stream, whatever carries it: its parameters, its pictures in and out, its chunks."""
