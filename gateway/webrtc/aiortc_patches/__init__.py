"""Private members of aiortc and aioice that we replace, each for a reason that its module tells."""
