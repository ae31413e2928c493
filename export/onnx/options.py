"""Options that the commands share."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from export.checkpoints.lora_merge import ScaledAdapter
from export.onnx.jobs import Size
from export.onnx.store import EngineStore

Command = TypeVar("Command", bound=Callable[..., Any])


def parse_sizes(value: str) -> list[Size]:
    """HEIGHTxWIDTH in pixels, or several with commas between. Raises BadParameter."""
    sizes = []
    for text in value.lower().split(","):
        parts = text.split("x")
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            raise click.BadParameter(f"{text!r} is not HEIGHTxWIDTH, such as 320x576.")
        sizes.append((int(parts[0]), int(parts[1])))
    return sizes


def parse_loras(
    context: click.Context, option: click.Parameter, values: Sequence[str]
) -> tuple[ScaledAdapter, ...]:
    """FILE or FILE=SCALE, each. Raises BadParameter."""
    loras = []
    for value in values:
        path, found, scale = value.rpartition("=")
        try:
            strength = float(scale) if found else 1.0
        except ValueError as error:
            raise click.BadParameter(
                f"{value!r} is not FILE=SCALE, such as style.safetensors=0.8."
            ) from error
        if not math.isfinite(strength):
            raise click.BadParameter(f"{value!r} has a scale that is no number.")
        loras.append(ScaledAdapter(Path(path if found else value).expanduser().absolute(), strength))
    return tuple(loras)


def directory_options(command: Command) -> Command:
    """--home and --engines, of every command that works on engines."""
    home = click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="WANSTREAM_HOME",
        default=Path("~/.daydream-scope"),
        show_default=True,
        help="Where models and engines are, unless they are named.",
    )
    engines = click.option(
        "--engines",
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="WANSTREAM_ENGINES_DIR",
        help="Directory of the engines.  [default: engines below --home]",
    )
    return home(engines(command))


def gpu_memory_option(command: Command) -> Command:
    """--gpu-memory, of every command whose work would be for nothing on a GPU that is too small."""
    return click.option(
        "--gpu-memory",
        type=click.FloatRange(0),
        metavar="GB",
        help="Of the GPU that will serve: what has no room there is refused. 0: do not look.  "
        "[default: that of this machine]",
    )(command)


def engine_store(home: Path, engines: Path | None) -> EngineStore:
    """The store that the options name."""
    return EngineStore((engines or home / "engines").expanduser().absolute())
