"""What replays a golden case: one function per kind, which compares every expected tensor of the case."""
