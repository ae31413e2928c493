"""Command line `wanstream-build`: exported engines to TensorRT plans, and which of both serves a set."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from export.onnx.options import directory_options, engine_store, gpu_memory_option
from export.onnx.room import as_json, gpu_bytes
from export.tensorrt.build import Build
from export.tensorrt.engine_build import server_options, trtexec_command
from export.tensorrt.rtx_build import RtxCompiler, RtxSetBuild
from streaming.engines.engine_set import Variant
from streaming.engines.manifest import BuildOptions, HardwareCompatibility
from streaming.errors import WanstreamError
from streaming.memory.machine import Machine


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("engine_set")
@click.option("--dry-run", is_flag=True, help="Print what would be built, as JSON; needs no TensorRT.")
@click.option("--check", is_flag=True, help="Build nothing; tell whether the plans can be served here.")
@click.option("--trtexec", is_flag=True, help="Print the equal commands of NVIDIA's trtexec.")
@click.option("--record", is_flag=True, help="Serve the plans that these commands have built here.")
@click.option(
    "--serve-with",
    type=click.Choice(get_args(Variant)),
    help="Build nothing; serve the set with the plans that are there, or with ONNX Runtime again.",
)
@click.option(
    "--with",
    "compiler",
    type=click.Choice(["tensorrt", "rtx"]),
    default="tensorrt",
    show_default=True,
    help="tensorrt: plans for Triton, in NVIDIA's container. rtx: TensorRT for RTX, for ONNX Runtime in the "
    "pipeline's process; GeForce and workstation cards, no container.",
)
@click.option(
    "--rtx-python",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="WANSTREAM_RTX_PYTHON",
    help="Python of an environment with ONNX Runtime and TensorRT for RTX.  [default: this one]",
)
@click.option("--level", type=click.IntRange(0, 5), default=3, show_default=True, help="Optimisation level.")
@click.option("--workspace", type=click.IntRange(1), default=8, show_default=True, help="GiB of GPU memory.")
@click.option("--refittable", is_flag=True, help="Allow other weights in the plan, for adapters.")
@click.option("--version-compatible", is_flag=True, help="Run on later TensorRT of the same major version.")
@click.option(
    "--hardware-compatibility",
    type=click.Choice(get_args(HardwareCompatibility)),
    default="none",
    show_default=True,
    help="GPUs that the plans run on beside this one.",
)
@click.option("--gpu", "gpus", type=click.IntRange(0), multiple=True, help="Number of a GPU that serves.")
@click.option("--no-compare", is_flag=True, help="Do not compare new plans with ONNX Runtime.")
@gpu_memory_option
@directory_options
def main(
    engine_set: str,
    home: Path,
    engines: Path | None,
    *,
    gpus: tuple[int, ...],
    no_compare: bool,
    gpu_memory: float | None,
    compiler: str,
    rtx_python: Path | None,
    **options: Any,
) -> None:
    """Build TensorRT plans for ENGINE_SET, a name below `sets` that wanstream-export has printed.

    Run it on the machine that serves, in NVIDIA's TensorRT container of the same release as Triton's. Plans
    that are there for this GPU, this TensorRT and these options are kept.
    """
    if compiler == "rtx":
        chosen = RtxCompiler(rtx_python) if rtx_python else RtxCompiler()
        _with_rtx(
            RtxSetBuild(engine_set, engine_store(home, engines), click.echo, chosen, Machine.here()), options
        )
        return
    build = Build(
        engine_set,
        engine_store(home, engines),
        click.echo,
        BuildOptions(
            level=options["level"],
            workspace_bytes=options["workspace"] << 30,
            refittable=options["refittable"],
            version_compatible=options["version_compatible"],
            hardware_compatibility=options["hardware_compatibility"],
        ),
        gpus or (0,),
        compare=not no_compare,
        gpu_memory=gpu_bytes(gpu_memory, min(gpus, default=0)),
    )
    try:
        if options["dry_run"]:
            click.echo(json.dumps(_description(build), indent=1))
        elif options["check"]:
            build.check()
        elif options["trtexec"]:
            click.echo("\n".join(shlex.join(trtexec_command(plan)) for plan in build.plans()))
        elif options["serve_with"]:
            build.serve_with(options["serve_with"])
        elif options["record"]:
            build.record()
        else:
            build.run()
    except WanstreamError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _with_rtx(build: RtxSetBuild, options: Mapping[str, Any]) -> None:
    """Compile, or check what was compiled; exits with 1 and a sentence where that fails."""
    for name in ("dry_run", "trtexec", "record", "serve_with"):
        if options[name]:
            raise click.UsageError(f"--{name.replace('_', '-')} is for plans: leave it out with --with rtx.")
    try:
        if options["check"]:
            build.check()
        else:
            build.run()
    except WanstreamError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _description(build: Build) -> dict[str, Any]:
    """Everything about a build: the machine as far as it is known, each engine, and what Triton needs."""
    machine, memories = build.machine, build.memory()
    fitted = as_json(build.fits())
    return {
        "engine_set": build.engine_set,
        "gpu": machine.gpu,
        "compute_capability": machine.compute_capability,
        "driver": machine.driver,
        "tensorrt": machine.tensorrt,
        "engines": [plan.model_dump() for plan in build.plans()],
        "gpu_memory_bytes": build.gpu_memory,
        "memory": [memory.as_json() | fitted[memory.height, memory.width] for memory in memories],
        "server_options": server_options(
            dict.fromkeys(build.gpus, max(m.pool for m in memories)),
            version_compatible=build.options.version_compatible,
        ),
    }


if __name__ == "__main__":
    main()
