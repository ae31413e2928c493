"""A Triton server of our own, as a child process."""
