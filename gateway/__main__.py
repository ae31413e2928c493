"""Command line of the server: `wanstream`, or `daydream-scope` for those who follow Scope's documentation."""

import asyncio
import dataclasses
import ipaddress
import logging
import shlex
import socket
import subprocess
import sys
import threading
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

import click

from gateway import proxies
from gateway.app import VERSION, create_app, tools_of
from gateway.config import Config
from gateway.embedded.server import EmbeddedTriton, model_repository
from gateway.files.models.models import Models
from gateway.logs import setup_logging
from gateway.pipelines import prepare_cli
from gateway.pipelines.load_params import find_lora
from gateway.pipelines.preparation import CHOICES, PreparedChoice, Tools, Wish, wish_of
from gateway.server import bind, serve
from gateway.serving.adapters import Adapters
from gateway.serving.checkpoints import Checkpoints, checkpoints_of
from gateway.serving.commands import has_tensorrt
from gateway.serving.demo import DemoEngines
from gateway.serving.engine_sets import EngineSets
from gateway.serving.interface import Serving
from gateway.serving.load_plans import LoadPlanner
from gateway.serving.memory import Memory
from gateway.serving.merged_sets import MergedSets, SetMerger
from gateway.serving.recipes import recipes
from gateway.triton.serving import TritonServing
from streaming.engines.demo import demo_adapters
from streaming.engines.ort import GpuProviders
from streaming.errors import WanstreamError
from streaming.memory.machine import gpu_memory_bytes, torch_has_cuda
from streaming.memory.units import in_units
from streaming.specs import SPECS

logger = logging.getLogger("gateway")  # __name__ is "__main__" under `python -m gateway`


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to bind to.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="TCP port.")
@click.option(
    "--reload",
    is_flag=True,
    help="Start again, without a browser, whenever a source file changes (development).",
)
@click.option("-N", "--no-browser", is_flag=True, help="Do not open the page in a browser.")
@click.option("--version", "show_version", is_flag=True, help="Show the version and exit.")
@click.option(
    "--triton-url",
    metavar="HOST:PORT",
    help="gRPC endpoint of an external Triton server; without it an embedded one is started.",
)
@click.option("--triton-metrics-url", metavar="URL", help="Metrics of the external Triton (GPU memory).")
@click.option(
    "--lora-dir",
    "lora_dirs",
    multiple=True,
    metavar="DIRECTORY",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="A further directory of LoRA files, which is only read; may be repeated.",
)
@click.option("--max-sessions", type=click.IntRange(1), help="Limit of concurrent streams.")
@click.pass_context
def main(
    context: click.Context,
    /,
    reload: bool,
    no_browser: bool,
    show_version: bool,
    lora_dirs: tuple[Path, ...],
    **options: Any,
) -> None:
    """Real-time, prompt-driven video: REST and WebRTC in front of NVIDIA Triton."""
    if context.invoked_subcommand is not None:
        return
    if show_version:
        click.echo(f"{context.info_name}: {VERSION}")
        click.echo(f"git commit: {git_commit()}")
        return
    try:
        given = {key: value for key, value in options.items() if value is not None}
        config = Config.from_env()
        directories = config.directories.with_loras([*lora_dirs, *offered_loras(config)])
        commit = git_commit() if config.git_commit == "unknown" else config.git_commit
        config = dataclasses.replace(config, directories=directories, git_commit=commit, **given)
        if reload:
            _run_with_reload()
        else:
            _serve(config, open_browser=not no_browser)
    except WanstreamError as error:
        raise click.ClickException(str(error)) from error


@main.command()
def pipelines() -> None:
    """List the pipelines this server knows."""
    click.echo(f"{len(SPECS)} pipeline(s) available:")
    for name in SPECS:
        click.echo(f"  • {name}")


@main.command(name="recipes")
def print_recipes() -> None:
    """Tell what GPUs of the usual sizes can stream without engines, by the memory plan."""
    click.echo(recipes())


@main.command(name="merged-sets")
@click.option("--remove", metavar="NAME", help="Delete this one.")
@click.option("--clear", is_flag=True, help="Delete all of them.")
def merged_sets(remove: str | None, clear: bool) -> None:
    """List the engine sets with LoRA files in their weights, which loads have made; or delete them.

    A server that streams with one goes on; its next load makes it again.
    """
    try:
        config = Config.from_env()
        merged = MergedSets(engine_sets(config), config.merged_sets)
        found = merged.found()
        if remove is not None or clear:
            names = [one.name for one in found if clear or one.name == remove]
            if not names and not clear:
                raise click.ClickException(f"There is no merged set '{remove}'.")
            click.echo(f"Removed {len(names)}: {in_units(merged.remove(names))}.")
            return
        for one in found:
            loras = ", ".join(f"{lora['file']} {lora['scale']:g}" for lora in one.describe(None)["loras"])
            click.echo(f"{one.name}  {in_units(one.size_bytes)}  {one.last_used:%Y-%m-%d %H:%M}  {loras}")
        click.echo(f"{len(found)} of at most {config.merged_sets}.")
    except WanstreamError as error:
        raise click.ClickException(str(error)) from error


@main.command(name="prepare")
@click.argument("pipeline", type=click.Choice(prepare_cli.PIPELINES))
@click.option("--backend", type=click.Choice(CHOICES), default="auto", show_default=True)
@click.option("--size", metavar="HEIGHTxWIDTH", help="Of the pictures.  [default: the pipeline's own]")
@click.option("--vae-type", help="Autoencoder.  [default: wan]")
def prepare_pipeline(pipeline: str, backend: PreparedChoice, size: str | None, vae_type: str | None) -> None:
    """Download the weights of PIPELINE, and make engines of them if BACKEND runs those.

    What is complete is kept: it goes on where it stopped. auto is the fastest backend of this machine.
    """
    try:
        config = Config.from_env()
        config.directories.create()
        engines = engine_sets(config)
        checkpoints = checkpoints_of(config)
        tools = tools_of(config, on_gpu=checkpoints.has_gpu)
        wish = wish_of(SPECS[pipeline], tools, backend, prepare_cli.size_of(size), vae_type)
        asyncio.run(_prepare(config, wish, tools, LoadPlanner(engines, checkpoints)))
    except KeyboardInterrupt:
        click.echo("Interrupted; the next time goes on from here.", err=True)
        sys.exit(130)
    except WanstreamError as error:
        raise click.ClickException(str(error)) from error


async def _prepare(config: Config, wish: Wish, tools: Tools, planner: LoadPlanner) -> None:
    async def used_and_total() -> tuple[int, int] | None:
        return await asyncio.to_thread(gpu_memory_bytes)

    limit = None if config.memory_limit_mb is None else config.memory_limit_mb * 1_000_000
    memory = Memory(used_and_total, on_cpu=not tools.on_gpu, limit_bytes=limit)
    await prepare_cli.run(wish, Models.from_config(config, lambda spec: False), tools, planner, memory)


def git_commit() -> str:
    """Short hash of the source tree, or `unknown (...)`."""
    package = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--show-prefix", "--short", "HEAD"],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown (not a git checkout)"
    prefix, _, commit = found.stdout.strip().partition("\n")
    # An environment inside somebody's repository: that one's commit is not ours.
    return commit if prefix == f"{package.name}/" else "unknown (not a git checkout)"


def offered_loras(config: Config) -> list[Path]:
    """Where the demonstration's LoRA files are; nothing without it."""
    return [demo_adapters()] if config.demo and config.triton_url is None else []


def engine_sets(config: Config) -> EngineSets:
    """The engines of this server; an embedded one makes those of the demonstration itself."""
    directories, embedded = config.directories, config.triton_url is None
    demo = DemoEngines(directories.home, directories.engines) if embedded and config.demo else None
    gpu = GpuProviders.here(config.onnxruntime_provider) if embedded and torch_has_cuda() else None
    return EngineSets(directories.engines, on_cpu=embedded, demo=demo, gpu=gpu)


def make_serving(config: Config, engines: EngineSets, checkpoints: Checkpoints | None = None) -> Serving:
    """The serving side that the settings ask for. Raises WanstreamError when they cannot be used."""
    adapters = Adapters(
        partial(find_lora, directories=config.directories.lora_directories),
        engines.models.parent / "adapters",
    )
    merger = SetMerger(
        MergedSets(engines, config.merged_sets),
        config.directories.home,
        config.directories.models,
        has_tensorrt(),
    )
    repository = model_repository()
    limit = None if config.memory_limit_mb is None else config.memory_limit_mb * 1_000_000
    if config.triton_url is not None:
        if "://" in config.triton_url or ":" not in config.triton_url:
            raise WanstreamError(
                f"--triton-url (WANSTREAM_TRITON_URL) must be HOST:PORT, not {config.triton_url!r}. Triton's "
                "gRPC port is 8001 unless it was told otherwise."
            )
        return TritonServing(
            repository,
            external_url=config.triton_url,
            shared_memory=config.triton_shared_memory,
            metrics_url=config.triton_metrics_url,
            engines=engines,
            checkpoints=checkpoints,
            adapters=adapters,
            merger=merger,
            memory_limit_bytes=limit,
            preprocessors=config.directories.models,
        )
    engines.models.mkdir(parents=True, exist_ok=True)
    triton = EmbeddedTriton([repository, engines.models])
    return TritonServing(
        repository,
        embedded=triton,
        engines=engines,
        checkpoints=checkpoints,
        adapters=adapters,
        merger=merger,
        memory_limit_bytes=limit,
        preprocessors=config.directories.models,
    )


def _serve(config: Config, *, open_browser: bool) -> None:
    bound = bind(config.host, config.port)
    config.directories.create()
    log_file = setup_logging(config.directories.logs, config.logging)
    logger.info("wanstream %s (%s), log file %s", VERSION, config.git_commit, log_file)
    if not _is_loopback(config.host) and config.secrets.access_token is None:
        logger.warning(
            "Bound to %s: everyone who can reach this address can use the server. Set WANSTREAM_TOKEN, or "
            "use --host 127.0.0.1 to keep it to this machine.",
            config.host,
        )
    for problem in proxies.problems():
        logger.warning("Downloads and TURN credentials will fail: %s.", problem)
    asyncio.run(_run(config, bound, open_browser=open_browser))


async def _run(config: Config, bound: socket.socket, *, open_browser: bool) -> None:
    engines = engine_sets(config)
    checkpoints = checkpoints_of(config)
    opening = LoadPlanner(engines, checkpoints).opening()
    if config.pipeline is None and opening is not None:
        config = dataclasses.replace(config, opening=opening.id)
    app = create_app(config, make_serving(config, engines, checkpoints))
    url = page_url(config.host, config.port)

    @app.while_serving
    async def announce() -> Any:
        logger.info("Listening on port %d (page: %s, API: %s/docs)", config.port, url, url)
        if open_browser and config.secrets.access_token is None:
            # Some browsers return only when they are closed; the server must neither wait for that nor
            # be kept alive by it.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        elif open_browser:
            logger.info("Open %s/?token=... with the value of WANSTREAM_TOKEN", url)
        yield

    await serve(app, config, bound)


def _run_with_reload() -> None:
    """Run the server in a child process that is started again after each change of a source file."""
    try:
        from watchfiles import run_process  # a development tool, absent from the base installation
    except ImportError as error:
        raise WanstreamError("--reload needs watchfiles. Run: pip install watchfiles") from error

    # A browser window for each restart would be a nuisance.
    command = [sys.executable, "-m", "gateway", *(a for a in sys.argv[1:] if a != "--reload"), "-N"]
    root = Path(__file__).resolve().parent.parent
    watched = [root / name for name in ("gateway", "streaming", "model_repository")]
    run_process(*watched, target=shlex.join(command), target_type="command", sigint_timeout=10)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def page_url(host: str, port: int) -> str:
    """Where a browser on this machine finds the page of a server that is bound to `host`."""
    if host in ("0.0.0.0", "::", "127.0.0.1", "::1"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    main(prog_name="wanstream")
