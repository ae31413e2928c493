"""Open Sound Control: parameters of streams by UDP, from lighting desks, faders and patches."""
