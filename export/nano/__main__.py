"""`python -m export.nano train --out DIR`: from nothing to the weights of the nano checkpoint.

Every stage saves itself as it goes, and the same command goes on where it was stopped.
"""

import time
from pathlib import Path

import click
import torch

from export.nano.package import write_weights
from export.nano.recipe import PLANS, SIZE, STAGES, Recipe
from export.nano.stages import run
from export.nano.transformer_training import CONFIG


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


if __name__ == "__main__":
    main()
