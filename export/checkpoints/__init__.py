"""Checkpoints: finding, reading and merging the files of weights."""
