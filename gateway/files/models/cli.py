"""`download_models --pipeline ID`: fetch a pipeline's files without a server."""

import asyncio
import sys
from contextlib import suppress

import click

from gateway.config import Config
from gateway.files.models.artifacts import ARTIFACTS, PREPROCESSORS
from gateway.files.models.models import Models, Progress
from gateway.serving.checkpoints import room_here
from gateway.serving.interface import ServingError
from streaming.errors import WanstreamError
from streaming.specs import SPECS

_REPORT_EVERY_S = 1.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--pipeline",
    "-p",
    "pipeline_id",
    required=True,
    type=click.Choice([*ARTIFACTS, *PREPROCESSORS]),
    help="Whose files to download; preprocessors of control video count, too.",
)
@click.option("--anyway", is_flag=True, help="Also what the GPU of this machine has no room for.")
def main(pipeline_id: str, *, anyway: bool) -> None:
    """Download a pipeline's model files from Hugging Face; what is there is not fetched again.

    HF_TOKEN is used where it is set; DAYDREAM_SCOPE_MODELS_DIR says where the files are stored.
    """
    try:
        config = Config.from_env()
        if not anyway:
            _require_room(pipeline_id, config)
        asyncio.run(_download(pipeline_id, config))
    except KeyboardInterrupt:
        click.echo("Interrupted; the next download goes on from here.", err=True)
        sys.exit(130)
    except WanstreamError as error:
        click.echo(f"ERROR: {error}", err=True)
        sys.exit(1)
    click.echo(f"All files of {pipeline_id} are there.")


def _require_room(pipeline_id: str, config: Config) -> None:
    """Raises WanstreamError for weights that the GPU of this machine could not hold at any usual size."""
    spec = SPECS.get(pipeline_id)
    try:
        room = None if spec is None else room_here(config, spec)
    except ServingError:  # a damaged file that a download mends
        return
    refusal = None if room is None else room.refusal(pipeline_id, "add --anyway")
    if refusal is not None:
        raise WanstreamError(refusal)


async def _download(pipeline_id: str, config: Config) -> None:
    """Raises DownloadError."""
    models = Models.from_config(config, lambda _: False)
    progress = Progress()
    report = asyncio.create_task(_report(progress))
    try:
        if (ARTIFACTS | PREPROCESSORS)[pipeline_id]:
            click.echo(f"Downloading the files of {pipeline_id} to {config.directories.models}")
            await models.download(pipeline_id, progress)
            click.echo(_line(progress))
    finally:
        report.cancel()
        with suppress(asyncio.CancelledError):
            await report
        await models.close()


async def _report(progress: Progress) -> None:
    """Print how far the download is, whenever that has changed."""
    shown = ""
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        line = _line(progress)
        if progress.repository is not None and line != shown:
            click.echo(line)
            shown = line


def _line(progress: Progress) -> str:
    now = progress.describe()
    return (
        f"{now['total_percentage']:5.1f} %  {now['downloaded_mb']:.0f} of {now['total_mb']:.0f} MB  "
        f"{now['current_artifact']} ({now['percentage']:.1f} %)"
    )
