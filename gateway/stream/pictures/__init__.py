"""Pictures on their way into a stream and out of it."""
