"""What a GPU of a usual size can stream without engines, by the memory plan: a table for the docs."""

from pathlib import Path
from typing import Final

from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.load_plan import LoadPlan, TorchPlan
from streaming.memory.checkpoints import CheckpointSizes
from streaming.memory.fit import Fit, fit_checkpoint
from streaming.memory.offers import SIZES
from streaming.memory.plan import DoesNotFitError
from streaming.specs import SPECS, VaeType

CARDS_GB: Final = (8, 12, 16, 24, 32, 80)
_AUTOENCODERS: Final[tuple[VaeType, ...]] = ("wan", "tae")
_GB: Final = 1_000_000_000
_NOTHING: Final = "none"


def recipes() -> str:
    """A Markdown table: by card and pipeline the largest size with each autoencoder."""
    names = list(TRANSFORMER_FILES)
    lines = [f"| card | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for card_gb in CARDS_GB:
        cells = ("<br>".join(_cell(name, kind, card_gb) for kind in _AUTOENCODERS) for name in names)
        lines.append(f"| {card_gb} GB | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(pipeline: str, vae_type: VaeType, card_gb: int) -> str:
    for size in SIZES:
        try:
            found = fit_on_card(pipeline, vae_type, size, card_gb)
        except DoesNotFitError:
            continue
        on_gpu = found.pytorch is not None and found.pytorch.text_device != "cpu"
        return f"{vae_type} {size[0]}x{size[1]} ({found.sessions}{', T' if on_gpu else ''})"
    return f"{vae_type} {_NOTHING}"


def fit_on_card(pipeline: str, vae_type: VaeType, size: tuple[int, int], card_gb: int) -> Fit:
    """How the released weights go on a card that is empty, in bfloat16. Raises DoesNotFitError."""
    device = "cuda:0"
    torch_plan = TorchPlan(
        checkpoints=Path(),
        vae_type=vae_type,
        precision="bf16",
        device=device,
        text_device=device,
        text_precision="bf16",
    )
    plan = LoadPlan(
        models=Path(), height=size[0], width=size[1], backend="pytorch", pytorch=torch_plan, base_seed=0
    )
    sizes = CheckpointSizes(TRANSFORMER_FILES[pipeline].published)
    return fit_checkpoint(SPECS[pipeline], sizes, plan, _AUTOENCODERS, card_gb * _GB, None)
