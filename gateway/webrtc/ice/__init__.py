"""ICE: which STUN and TURN servers are used, and where their credentials come from."""
