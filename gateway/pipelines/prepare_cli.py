"""`wanstream prepare PIPELINE`: what POST /api/v1/pipeline/prepare does, without a server."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

import click

from gateway.files.models.models import Models
from gateway.pipelines.preparation import Preparation, Tools, Wish, prepare
from gateway.serving.load_plans import LoadPlanner
from gateway.serving.memory import Memory
from streaming.specs import SPECS

PIPELINES: Final = tuple(name for name, spec in SPECS.items() if spec.loop is not None)
_REPORT_EVERY_S = 1.0


def size_of(value: str | None) -> tuple[int | None, int | None]:
    """HEIGHTxWIDTH; None: the pipeline's own. Raises BadParameter."""
    if value is None:
        return None, None
    height, _, width = value.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"{value!r} is not HEIGHTxWIDTH, such as 320x576.")
    return int(height), int(width)


async def run(wish: Wish, models: Models, tools: Tools, planner: LoadPlanner, memory: Memory) -> None:
    """Prepare it and print how far that is. Raises WanstreamError; at once if it will have no room."""
    click.echo(f"Preparing {wish.spec.id} for backend {wish.backend}: {wish.reason}.")
    await memory.check(planner.expected(wish.spec, wish.load_params()), in_use=False)
    preparation = Preparation(wish)
    report = asyncio.create_task(_report(preparation))
    try:
        await prepare(preparation, models, tools)
    finally:
        report.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await report
        await models.close()
    click.echo(f"{wish.spec.id} is ready for backend {wish.backend}.")


async def _report(preparation: Preparation) -> None:
    """Print how far it is, whenever that has changed."""
    shown = ""
    while True:
        line = _line(preparation.describe())
        if line != shown:
            click.echo(line)
            shown = line
        await asyncio.sleep(_REPORT_EVERY_S)


def _line(now: Mapping[str, Any]) -> str:
    return f"[{now['step_number']}/{now['steps']}] {now['step']} {now['percentage']:.1f} %  {now['detail']}"
