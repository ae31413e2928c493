"""Whether the Triton server of this container is well: exit code 0, or a sentence and 1.

    python -m streaming.triton.health [PORT of HTTP]

A server says that it is ready although the process of a model is dead, or the GPU is gone, so each model
that it has loaded is asked for, and the GPU if the container was given one. Until release 25.12 Triton calls
a model ready whose process is dead.
"""

import http.client
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_TIMEOUT_S: Final = 4.0
_HTTP_PORT: Final = 8000
_REMEDY: Final = (
    "Restart the container; NVIDIA Container Toolkit 1.18 or later keeps it when systemd reloads its units."
)


def main(arguments: Sequence[str]) -> None:
    """Exit with 1 unless the server, its models and its GPU can be used."""
    port = int(arguments[0]) if arguments else _HTTP_PORT
    try:
        problem = server_problem(port) or gpu_problem()
    except (OSError, http.client.HTTPException, ValueError) as error:
        problem = f"No answer from Triton at port {port}: {error}"
    if problem is not None:
        sys.exit(problem)


def server_problem(port: int) -> str | None:
    """What is wrong with the server or one of its loaded models; None: nothing.

    Raises OSError, HTTPException or ValueError when it does not answer.
    """
    if _ask(port, "GET", "/v2/health/ready")[0] != 200:
        return f"Triton at port {port} is not ready"
    for name in _loaded(port):
        if _ask(port, "GET", f"/v2/models/{name}/ready")[0] != 200 and name in _loaded(port):
            return f"Model '{name}' is loaded and not ready: its process may have died"
    return None


def gpu_problem(devices: Path = Path("/dev")) -> str | None:
    """Why a GPU that this container was given cannot be used; None: it can, or there is none.

    devices: directory of the device files
    """
    files = sorted([*devices.glob("nvidiactl"), *devices.glob("nvidia[0-9]*")])
    for path in files:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return f"The GPU is lost: {path} cannot be opened ({error.strerror}). {_REMEDY}"
    return _driver_problem() if files else None


def _driver_problem() -> str | None:
    import pynvml  # here: it takes time, and most containers have no GPU

    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError_LibraryNotFound:
        return None  # the container was not given the driver's tools
    except pynvml.NVMLError as error:
        return f"The GPU is lost: its driver says '{error}'. {_REMEDY}"
    return None


def _loaded(port: int) -> list[str]:
    """Names of the models that the server calls ready."""
    _, body = _ask(port, "POST", "/v2/repository/index", b'{"ready": true}')
    return [model["name"] for model in json.loads(body)]


def _ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1:])
