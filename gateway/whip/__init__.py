"""WHIP (RFC 9725) and WHEP: publishing to a stream and watching one with a single HTTP request."""
