"""Errors whose text is meant for the person who uses the server."""


class WanstreamError(Exception):
    """Base of all errors whose message may be shown to a user: it says what is wrong and what to do."""


class FatalStreamError(WanstreamError):
    """The stream cannot go on (out of memory, no input possible); retrying the chunk would not help."""


class UnknownSequenceError(WanstreamError):
    """The stream was not started here or is forgotten; the same request may start it."""


class NotFiniteError(WanstreamError):
    """A chunk came to values that are no numbers; it is not remembered."""
