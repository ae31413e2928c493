"""Health, hardware and the built-in page."""

import datetime
import time
from pathlib import Path

from quart import Blueprint, Response, send_from_directory
from quart_schema import hide, tag, validate_response

from gateway.access.auth import needs
from gateway.http import bodies
from gateway.http.openapi import answers
from gateway.local_video.service import LocalVideo
from gateway.serving.hardware import hardware_info
from gateway.serving.interface import Serving

_PAGE = Path(__file__).resolve().parent.parent / "page"
_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache", "Expires": "0"}


def general_blueprint(serving: Serving, local_video: LocalVideo, version: str, git_commit: str) -> Blueprint:
    bp = Blueprint("general", __name__)
    started = time.time()

    @bp.get("/health")
    @tag(["general"])
    @validate_response(bodies.Health)
    async def health() -> bodies.Health:
        """Whether the gateway answers; `triton.ready` tells of the serving side."""
        return bodies.Health(
            timestamp=datetime.datetime.now().astimezone().isoformat(timespec="microseconds"),
            server_start_time=started,
            version=version,
            git_commit=git_commit,
            triton=bodies.TritonHealth(ready=await serving.is_ready(), url=serving.url),
        )

    @bp.get("/api/v1/hardware/info")
    @tag(["general"])
    @validate_response(bodies.HardwareInfo)
    async def hardware() -> bodies.HardwareInfo:
        """GPU memory and texture sharing."""
        return bodies.HardwareInfo.model_validate(await hardware_info(serving, local_video))

    @bp.get("/")
    @needs("view")
    @tag(["general"])
    @answers(200, "text/html", description="a page that streams")
    async def index() -> Response:
        """The built-in page."""
        return await _page("index.html")

    @bp.get("/watch")
    @needs("view")
    @tag(["general"])
    @answers(200, "text/html", description="a page that shows a stream")
    async def watch() -> Response:
        """The page of those who watch: `?stream=ID`, `&role=controller` to ask for control."""
        return await _page("watch.html")

    @bp.get("/view")
    @needs("view")
    @tag(["general"])
    @answers(200, "text/html", description="a page that shows nothing but a stream")
    async def view() -> Response:
        """The clean feed, for a projector.

        `?stream=ID`, `&fit=` contain, cover or fill, `&scale=` plain, smooth or pixels.
        """
        return await _page("view.html")

    @bp.get("/static/<path:name>")
    @needs("view", foreign=True)  # parts of a page that the stream's gateway has shown; no secrets
    @hide
    async def static(name: str) -> Response:
        response = await send_from_directory(_PAGE, name)
        response.headers["Cache-Control"] = "no-cache"
        return response

    return bp


async def _page(name: str) -> Response:
    response = await send_from_directory(_PAGE, name)
    response.headers.update(_NO_CACHE)
    return response
