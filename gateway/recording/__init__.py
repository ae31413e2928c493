"""Takes: what a stream showed, as a video file, and what was asked of it, as lines that can be replayed."""
