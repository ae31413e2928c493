"""One script per question that only a machine with an NVIDIA GPU can answer; see README.md."""
