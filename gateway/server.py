"""Serve the gateway's app with hypercorn until it is told to stop."""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import threading
from typing import Final

import hypercorn.asyncio
import hypercorn.config
from quart import Quart

from gateway.app import Services
from gateway.config import Config
from streaming.errors import WanstreamError

logger = logging.getLogger(__name__)

_LAST_THREADS_S: Final = 1.0


async def serve(app: Quart, config: Config, bound: socket.socket) -> None:
    """Serve `app`, made by `create_app`, on a socket of `bind` until SIGINT or SIGTERM.

    SIGINT stops at once; SIGTERM gives open streams `config.drain_s` to end, a second one does not.
    """
    stop = _stop_on_signals(app.extensions["wanstream"], config.drain_s)
    try:
        await hypercorn.asyncio.serve(app, _hypercorn_config(bound), shutdown_trigger=stop.wait)
    except Exception:
        _end_soon(1)
        raise
    _end_soon(0)


def _end_soon(code: int) -> None:
    """Let nothing hold up the end of this process, whose work is done. code: its exit code."""
    # The interpreter would look for garbage among all modules: 0.35 s of CPU, and on a busy machine more than
    # all else that a stop does.
    gc.freeze()
    # It would also wait for its threads, and one that asks a dead name server returns after 10 s or more.
    deadline = threading.Timer(_LAST_THREADS_S, _end_now, (code,))
    deadline.daemon = True
    deadline.start()


def _end_now(code: int) -> None:
    threads = [t.name for t in threading.enumerate() if t.is_alive() and not t.daemon]
    logger.info("The server ends without waiting for its threads: %s", ", ".join(threads))
    logging.shutdown()  # writes what the handlers have
    os._exit(code)


def _stop_on_signals(services: Services, drain_s: float) -> asyncio.Event:
    """Set when the server is to stop: at once on SIGINT, on SIGTERM when the open streams had their time."""
    stop = asyncio.Event()
    draining: list[asyncio.Task[None]] = []

    async def drain() -> None:
        logger.info("Shutting down; open streams have %.0f s to end", drain_s)
        await asyncio.gather(services.sessions.drain(drain_s), services.players.drain(drain_s))
        stop.set()

    def terminate() -> None:
        if draining or not drain_s:
            stop.set()
        else:
            draining.append(asyncio.ensure_future(drain()))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_signal_handler(signal.SIGTERM, terminate)
    return stop


def _hypercorn_config(bound: socket.socket) -> hypercorn.config.Config:
    settings = hypercorn.config.Config()
    # hypercorn owns the descriptor from here. One worker: a session lives in the process that answered it.
    settings.bind = [f"fd://{bound.detach()}"]
    settings.graceful_timeout = 1.0
    settings.shutdown_timeout = 20.0  # a load and an unload in the making end before
    settings.startup_timeout = 30.0
    settings.h11_max_incomplete_size = 64 << 10
    settings.accesslog = logging.getLogger("hypercorn.access")
    settings.errorlog = logging.getLogger("hypercorn.error")
    return settings


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises WanstreamError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        raise WanstreamError(
            f"Cannot listen on {host}:{port} ({error.strerror}). {_advice(error)}"
        ) from error
    bound.setblocking(False)
    return bound


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "Stop the program that uses the port, or choose another one with --port."
        case errno.EACCES:
            return "Ports below 1024 are reserved: choose another one with --port."
        case _:
            return "Give an address of this machine with --host, for example 0.0.0.0 or 127.0.0.1."
