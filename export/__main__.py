"""Command line `wanstream-export`: checkpoints to engines."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
from tqdm import tqdm

from export.checkpoints.demo import ensure_demo_models
from export.fp8.quantization import ModelOpt
from export.onnx.jobs import PRECISIONS, Request, Size
from export.onnx.options import directory_options, engine_store, gpu_memory_option, parse_loras, parse_sizes
from export.onnx.outline import outline
from export.onnx.room import check_room, gpu_bytes
from export.onnx.run import export_pipeline, set_name
from export.onnx.verify import verify_set
from streaming.checkpoints.files import TRANSFORMER_FILES, VAE_FILES
from streaming.engines.demo import DEMO_MODELS, read_demo
from streaming.engines.manifest import Form
from streaming.errors import WanstreamError
from streaming.memory.units import in_units
from streaming.specs import SPECS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("pipeline", type=click.Choice(sorted(TRANSFORMER_FILES)))
@click.option(
    "--size",
    "--sizes",
    "sizes",
    type=parse_sizes,
    metavar="HEIGHTxWIDTH[,...]",
    multiple=True,
    help="Sizes of the pictures that one set of engines serves; the first one is the default.",
)
@click.option("--vae-type", type=click.Choice(sorted(VAE_FILES)), default="wan", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--window", type=click.IntRange(1), help="Attention window in latent frames.")
@click.option(
    "--demo",
    is_flag=True,
    help="The tiny weights of this package in place of downloaded ones; with --models, those of a directory.",
)
@click.option(
    "--form",
    type=click.Choice(get_args(Form)),
    help="portable: for TensorRT and ONNX Runtime; cpu: for ONNX Runtime only, and faster on the CPU.  "
    "[default: portable; cpu with --demo]",
)
@click.option(
    "--padding-keys/--no-padding-keys",
    default=True,
    show_default=True,
    help="Zero-score keys of Scope's attention kernel, in the pipelines that have them.",
)
@click.option(
    "--vace/--no-vace",
    default=False,
    show_default=True,
    help="Engines of the VACE branch, too: reference images and control video.",
)
@click.option(
    "--adapters",
    is_flag=True,
    help="A set whose transformer takes LoRA files beside its weights: their scales can be turned while "
    "streaming (lora_merge_mode runtime_peft).",
)
@click.option(
    "--lora",
    "loras",
    callback=parse_loras,
    metavar="FILE[=SCALE]",
    multiple=True,
    help="A set of its own with this LoRA file merged into the weights; may be repeated.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print as JSON what the released weights become: engines, TensorRT builds, GPU memory.",
)
@click.option(
    "--modelopt",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="WANSTREAM_MODELOPT",
    help="Python of the environment with NVIDIA's ModelOpt, for precision fp8.",
)
@click.option("--wait", is_flag=True, help="Wait until another export into the same directory has ended.")
@click.option(
    "--prune",
    is_flag=True,
    help="Afterwards, remove engines of earlier exports that no set names. Not while a server uses them.",
)
@click.option("--verify", is_flag=True, help="Check an earlier export again and write nothing.")
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="DAYDREAM_SCOPE_MODELS_DIR",
    help="Directory of the checkpoints.  [default: models below --home]",
)
@gpu_memory_option
@directory_options
@click.pass_context
def main(
    context: click.Context,
    /,
    *,
    demo: bool,
    dry_run: bool,
    wait: bool,
    prune: bool,
    verify: bool,
    home: Path,
    models: Path | None,
    modelopt: Path | None,
    gpu_memory: float | None,
    engines: Path | None,
    **options: Any,
) -> None:
    """Turn the checkpoints of PIPELINE into engines that Triton serves.

    Engines that are complete are kept: an interrupted export goes on where it stopped.
    """
    home = home.expanduser().absolute()
    named = context.get_parameter_source("models") is click.core.ParameterSource.COMMANDLINE
    try:
        request = _request(home, models if named or not demo else None, demo=demo, **options)
        store = engine_store(home, engines)
        if dry_run:
            click.echo(json.dumps(outline(request).as_json(store.root, gpu_bytes(gpu_memory)), indent=1))
        elif verify:
            manifests = verify_set(store, set_name(request))
            size = in_units(sum(manifest.bytes for manifest in manifests))
            click.echo(f"{len(manifests)} engines are complete and undamaged: {size}.")
        else:
            _check_gpu(request, gpu_memory)
            with tqdm(unit=" engines", disable=None, leave=False) as bar:  # None: only on a terminal

                def step(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                workers = _workers() if demo else 1
                export_pipeline(
                    request,
                    store,
                    tqdm.write,
                    workers=workers,
                    step=step,
                    wait=wait,
                    prune=prune,
                    modelopt=ModelOpt(modelopt) if modelopt else None,
                )
    except WanstreamError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _request(
    home: Path,
    models: Path | None,
    *,
    demo: bool,
    form: Form | None,
    pipeline: str,
    sizes: Sequence[list[Size]],
    **options: Any,
) -> Request:
    """What is asked for, the demonstration checkpoint written if it is needed."""
    if demo:
        models = models or ensure_demo_models(home / DEMO_MODELS)
        sizes = sizes or [[read_demo(models).size]]
    spec = SPECS[pipeline]
    directory = (models or home / "models").expanduser().absolute()
    named = tuple(dict.fromkeys(size for group in sizes for size in group))
    named = named or ((spec.height, spec.width),)
    form = form or ("cpu" if demo and options["precision"] == "fp32" else "portable")
    return Request(pipeline, directory, named, demo=demo, form=form, **options)


def _check_gpu(request: Request, given_gb: float | None) -> None:
    """Raises DoesNotFitError when the GPU that will serve has no room for the released weights.

    given_gb: its memory as the user says; float32 is for the CPU, if it does not
    """
    if request.demo or request.form != "portable" or (given_gb is None and request.precision == "fp32"):
        return
    gpu = gpu_bytes(given_gb)
    if gpu is not None:
        check_room(outline(request).fits(gpu), click.echo)


def _workers() -> int:
    """Processes for small weights; tracing takes one core each."""
    return min(len(os.sched_getaffinity(0)), 4)


if __name__ == "__main__":
    main()
