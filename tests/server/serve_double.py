"""A gateway whose GPU pipelines are served by the double: `python -m tests.server.serve_double --port N`.

With `--triton`, `passthrough` is served by a real embedded Triton. The double is steered over HTTP below
`/_double`, which exists in this process only; see `double_process.py` for the other end.
"""

import argparse
import asyncio
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quart import Blueprint, request
from quart_schema import hide

from gateway.__main__ import engine_sets, make_serving
from gateway.app import create_app
from gateway.config import Config, Directories
from gateway.logs import setup_logging
from gateway.server import bind, serve
from gateway.serving.interface import Availability, ServedPlan, Serving, ServingSession, StageCallback
from gateway.serving.room import Room
from streaming.specs import PipelineSpec
from tests.server.double import DoubleServing, Faults, named_images
from tests.server.double_process import CONTROL


class SplitServing:
    """`passthrough` from Triton, everything else from the double."""

    url = "triton and double"

    def __init__(self, triton: Serving, double: Serving) -> None:
        self._triton = triton
        self._double = double
        self._active = double

    async def start(self, on_lost: Callable[[str], None]) -> None:
        await self._triton.start(on_lost)
        await self._double.start(on_lost)

    @property
    def problem(self) -> str | None:
        return self._triton.problem

    async def is_ready(self) -> bool:
        return await self._triton.is_ready()

    async def verify(self) -> None:
        await self._triton.verify()

    def hurry(self) -> None:
        self._triton.hurry()

    def availability(self, spec: PipelineSpec, backend: str = "auto") -> Availability:
        return self._for(spec).availability(spec)

    @property
    def on_gpu(self) -> bool:
        return self._active.on_gpu

    @property
    def load_plan(self) -> ServedPlan | None:
        return self._active.load_plan

    async def check(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None:
        await self._for(spec).check(spec, load_params)

    async def room(self, spec: PipelineSpec) -> Room | None:
        return await self._for(spec).room(spec)

    async def check_room(self, spec: PipelineSpec, load_params: Mapping[str, Any]) -> None:
        await self._for(spec).check_room(spec, load_params)

    async def prepare(
        self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback
    ) -> None:
        await self._for(spec).prepare(spec, load_params, on_stage)

    async def load(self, spec: PipelineSpec, load_params: Mapping[str, Any], on_stage: StageCallback) -> None:
        self._active = self._for(spec)
        await self._active.load(spec, load_params, on_stage)

    async def unload(self) -> None:
        await self._active.unload()

    def open_session(self) -> ServingSession:
        return self._active.open_session()

    async def gpu_memory_bytes(self) -> tuple[int, int] | None:
        return await self._triton.gpu_memory_bytes()

    async def close(self) -> None:
        await self._double.close()
        await self._triton.close()

    def _for(self, spec: PipelineSpec) -> Serving:
        return self._triton if spec.loop is None else self._double


def control_blueprint(double: DoubleServing, directories: Directories) -> Blueprint:
    """What `DoubleProcess` calls."""
    bp = Blueprint("double", __name__, url_prefix=CONTROL)

    @bp.post("/faults")
    @hide
    async def change() -> dict[str, Any]:
        for name, value in (await request.get_json()).items():
            setattr(double.faults, name, value)
        return {}

    @bp.delete("/faults")
    @hide
    async def reset() -> dict[str, Any]:
        for field in dataclasses.fields(Faults):
            setattr(double.faults, field.name, field.default)
        return {}

    @bp.post("/lose")
    @hide
    async def lose() -> dict[str, Any]:
        double.lose((await request.get_json())["text"])
        return {}

    @bp.get("/tasks")
    @hide
    async def tasks() -> list[str]:
        works = [task.get_coro() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        # hypercorn's, which stay for some seconds with each connection, and requests are not meant.
        own = [work for work in works if not re.search("hypercorn|quart", work.cr_code.co_filename)]
        return sorted(work.__qualname__ for work in own)

    @bp.delete("/chunks")
    @hide
    async def forget() -> dict[str, Any]:
        for session in double.sessions:
            session.forget()
        return {}

    @bp.get("/sessions")
    @hide
    async def sessions() -> list[dict[str, Any]]:
        return [
            {
                "closed": s.closed,
                "given_up": s.given_up,
                "chunks": [named_images(c, directories.assets) for c in s.chunks],
            }
            for s in double.sessions
        ]

    return bp


async def run(config: Config, *, triton: bool) -> None:
    """Serve until SIGINT or SIGTERM."""
    config.directories.create()
    setup_logging(config.directories.logs, config.logging)
    double = DoubleServing()
    serving: Serving = SplitServing(make_serving(config, engine_sets(config)), double) if triton else double
    app = create_app(config, serving)
    app.register_blueprint(control_blueprint(double, config.directories))
    await serve(app, config, bind(config.host, config.port))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--triton", action="store_true", help="passthrough from an embedded Triton")
    parser.add_argument("--connect-timeout", type=float, help="seconds")
    options = parser.parse_args(arguments)
    config = dataclasses.replace(Config.from_env(), host=options.host, port=options.port)
    if options.connect_timeout is not None:
        config = dataclasses.replace(config, connect_timeout_s=options.connect_timeout)
    asyncio.run(run(config, triton=options.triton))


if __name__ == "__main__":
    main()
