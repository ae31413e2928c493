"""Whether the server of this container is well: exit code 0, or a sentence and 1.

    python -m gateway.health [<argument of the server>...]

Without arguments those of process 1 are taken, which is the server in its image: it may listen on another
port or address than usual. No proxy is used, whatever the environment of the container says.
"""

import http.client
import sys
from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 4.0
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def main(arguments: Sequence[str]) -> None:
    """Exit with 1 unless the server that runs with these arguments answers."""
    arguments = arguments or Path("/proc/1/cmdline").read_text(encoding="utf-8").split("\0")
    host = _option(arguments, "--host") or "0.0.0.0"
    port = int(_option(arguments, "--port") or 8000)
    connection = http.client.HTTPConnection(_UNSPECIFIED.get(host, host), port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"No answer from {host}:{port}: {error}")
    if status != 200:
        sys.exit(f"{host}:{port} answers {status}")


def _option(arguments: Sequence[str], name: str) -> str | None:
    """The last value that an option has, `--name value` or `--name=value`."""
    found = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == name:
            found = following
        elif argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
