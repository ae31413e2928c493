"""Triton, which makes chunks: connection, models, a sequence per stream, pictures through shared memory."""
