"""A stream's pictures as video packets: encoded once, for everybody who wants that codec."""
