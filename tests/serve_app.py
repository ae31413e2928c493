"""Serve some of the gateway's blueprints on a free port, with the gateway's error answers."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import hypercorn.asyncio
import hypercorn.config
from quart import Blueprint, Quart, Response, jsonify
from quart_schema import QuartSchema
from werkzeug.exceptions import HTTPException

from gateway.errors import ApiError, ValidationFailed
from gateway.http.uploads import take_bodies_in_pieces
from tests.server.client import HttpClient


def make_app(*blueprints: Blueprint) -> Quart:
    """An app with the settings that matter to these blueprints; the whole one is `gateway.app`."""
    app = Quart(__name__, static_folder=None)
    app.url_map.merge_slashes = False
    take_bodies_in_pieces(app)
    app.config["RESPONSE_TIMEOUT"] = None
    QuartSchema(app)
    for blueprint in blueprints:
        app.register_blueprint(blueprint)

    @app.errorhandler(ApiError)
    async def refused(error: ApiError) -> tuple[Response, int]:
        return jsonify({"detail": error.detail}), error.status

    @app.errorhandler(ValidationFailed)
    async def malformed(error: ValidationFailed) -> tuple[Response, int]:
        return jsonify({"detail": error.problems}), 422

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> tuple[Response, int]:
        return jsonify({"detail": error.name}), error.code or 500

    return app


@asynccontextmanager
async def serving(app: Quart) -> AsyncIterator[HttpClient]:
    """A client of `app`, which is served over real sockets meanwhile."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = hypercorn.config.Config()
    settings.bind = [f"fd://{listener.detach()}"]
    settings.graceful_timeout = 1.0
    stop = asyncio.Event()
    server = asyncio.create_task(hypercorn.asyncio.serve(app, settings, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    client = HttpClient(f"http://127.0.0.1:{port}")
    try:
        await _until_it_listens(port)
        yield client
    finally:
        stop.set()
        await server


async def _until_it_listens(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise AssertionError(f"nothing listens on port {port} after 4 s")
