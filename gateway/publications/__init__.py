"""Publications: streams that this gateway sends by WHIP (RFC 9725) to a media server, for an audience."""
