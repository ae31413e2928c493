"""Graphs that run somewhere: what is known of them, where they run, what memory they need."""
