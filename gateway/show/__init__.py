"""What is prepared for an evening: looks, cue lists, and how they are played to a stream."""
