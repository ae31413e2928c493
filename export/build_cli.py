"""Command line `wanstream-build`: what TensorRT has to build from exported engines."""

import json
import shlex
import sys
from pathlib import Path

import click

from export.engine_build import BuildPlan, build_plan, trtexec_command
from export.store import EngineStore
from streaming.engine_set import read_engine_set
from streaming.errors import WanstreamError

_NOT_YET = (
    "Building plans is not part of this version. Use --trtexec, and run its commands in NVIDIA's "
    "TensorRT container of the release that serves, or --dry-run to see what would be built."
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("engine_set")
@click.option("--dry-run", is_flag=True, help="Print what would be built, as JSON.")
@click.option("--trtexec", is_flag=True, help="Print the equal commands of NVIDIA's trtexec.")
@click.option("--level", type=click.IntRange(0, 5), default=3, show_default=True, help="Optimisation level.")
@click.option("--workspace", type=click.IntRange(1), default=8, show_default=True, help="GiB of GPU memory.")
@click.option("--refittable", is_flag=True, help="Allow other weights in the plan, for adapters.")
@click.option(
    "--engines",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="WANSTREAM_ENGINES_DIR",
    default=Path("~/.daydream-scope/engines"),
    show_default=True,
    help="Directory of the engines.",
)
def main(
    engine_set: str,
    dry_run: bool,
    trtexec: bool,
    level: int,
    workspace: int,
    refittable: bool,
    engines: Path,
) -> None:
    """Plan the TensorRT engines of ENGINE_SET, a name below `sets` that wanstream-export has printed."""
    store = EngineStore(engines.expanduser().absolute())
    try:
        if not dry_run and not trtexec:
            raise WanstreamError(_NOT_YET)
        plans = [
            build_plan(
                store.engine(name),
                store.verified(name, hashes=False),
                store.root / "timing.cache",
                level=level,
                workspace_bytes=workspace << 30,
                refittable=refittable,
            )
            for name in read_engine_set(store.sets / engine_set).engines()
        ]
    except WanstreamError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    click.echo(_commands(plans) if trtexec else _json(plans))


def _json(plans: list[BuildPlan]) -> str:
    return json.dumps([plan.model_dump() for plan in plans], indent=1)


def _commands(plans: list[BuildPlan]) -> str:
    return "\n".join(shlex.join(trtexec_command(plan)) for plan in plans)


if __name__ == "__main__":
    main()
