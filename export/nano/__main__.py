"""`python -m export.nano train --out DIR`: from nothing to the weights of the nano checkpoint.

Every stage saves itself as it goes, and the same command goes on where it was stopped.
"""

import time
from pathlib import Path
from typing import Final

import click
import torch

from export.checkpoints.load import load_text_encoder, load_vae
from export.nano.adapter_training import AdapterTraining, save_adapter
from export.nano.films import FilmMaker
from export.nano.package import write_weights
from export.nano.recipe import PLANS, SIZE, STAGES, Recipe
from export.nano.stages import run
from export.nano.styles import STYLES
from export.nano.text import TEXT_LEN
from export.nano.transformer_training import CONFIG
from export.nano.vace_films import VaceFilmMaker
from export.nano.vace_training import VaceTraining, save_branch

ADAPTERS: Final = Path(__file__).parent / "adapters"
WEIGHTS: Final = Path(__file__).parent / "weights"
ABOUT: Final = {
    "outlined-shapes": ("Outlined shapes", "Shapes have a light rim. For the demonstration model only."),
    "checkered-background": (
        "Checkered background",
        "Backgrounds have tiles. For the demonstration model only.",
    ),
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The nano checkpoint: tiny networks that follow their prompt."""


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Work directory."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stage", type=click.Choice(STAGES), help="Only up to this stage.  [default: all]")
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Length of every stage, as a factor.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="More help only on an idle machine.",
)
@click.option(
    "--device",
    type=click.Choice(list(PLANS)),
    default="cuda" if torch.cuda.is_available() else "cpu",
    show_default=True,
    help="A GPU trains many times as long.",
)
def train(*, out: Path, seed: int, stage: str | None, scale: float, threads: int, device: str) -> None:
    """Train stage after stage: one after the other, then write the files of the checkpoint."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    recipe = Recipe(out, seed, scale, torch.device(device))
    for name in STAGES:
        began = time.monotonic()
        run(name, recipe.stage(name), recipe.path(name), click.echo)
        recipe.finish(name)
        click.echo(f"{name}: {time.monotonic() - began:.0f} s in this run")
        if name == stage:
            return
    write_weights(out / "weights", CONFIG, SIZE, recipe.average(), recipe.vae(), recipe.encoder())
    click.echo(f"The checkpoint is in {out / 'weights'}.")


@main.command()
@click.argument("style", type=click.Choice(list(STYLES)))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Work directory."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--films", type=click.IntRange(1), default=40, show_default=True, help="Batches of four.")
@click.option("--steps", type=click.IntRange(2), default=600, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def adapter(*, style: str, out: Path, seed: int, films: int, steps: int, threads: int) -> None:
    """Train an adapter of STYLE for the shipped weights, and write it as a LoRA file."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    vae = load_vae(WEIGHTS / "vae.safetensors", "wan")
    encoder = load_text_encoder(WEIGHTS / "text_encoder.safetensors", TEXT_LEN)
    maker = FilmMaker(vae, encoder, SIZE, seed, films, batch=4, paint=STYLES[style])  # type: ignore[arg-type]
    run("films", maker, out / f"{style}-films.pt", click.echo)
    training = AdapterTraining(WEIGHTS / "transformer.safetensors", maker.bank(), SIZE, seed, steps)
    run(style, training, out / f"{style}.pt", click.echo)
    title, description = ABOUT[style]
    save_adapter(training.state_dict(), out / f"{style}.safetensors", title, description)
    click.echo(f"The adapter is {out / f'{style}.safetensors'}.")


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Work directory."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--films", type=click.FloatRange(min=0, min_open=True), default=2.0, help="Factor of their number."
)
@click.option("--steps", type=click.IntRange(2), default=2200, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def vace(*, out: Path, seed: int, films: float, steps: int, threads: int) -> None:
    """Train a VACE branch for the shipped weights, and write it as a module's file."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    vae = load_vae(WEIGHTS / "vae.safetensors", "wan")
    encoder = load_text_encoder(WEIGHTS / "text_encoder.safetensors", TEXT_LEN)
    maker = VaceFilmMaker(vae, encoder, SIZE, seed, films)  # type: ignore[arg-type]
    run("films", maker, out / "vace-films.pt", click.echo)
    training = VaceTraining(WEIGHTS / "transformer.safetensors", maker.bank(), seed, steps)
    run("vace", training, out / "vace.pt", click.echo)
    save_branch(training.state_dict(), out / "vace.safetensors")
    click.echo(f"The branch is {out / 'vace.safetensors'}.")


if __name__ == "__main__":
    main()
