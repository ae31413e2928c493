"""The linear layers of a transformer that adapters can change while it runs, in the order of their numbers.

Torch-free. The transformer's graph and that of its text each get the factors of all their layers in one
tensor (`streaming/network/inputs.py`); this is the one place that says which rows and columns are whose.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple

from streaming.adapters.files import AdapterError, AdapterFile
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.shapes import parameter_shapes

Network = Literal["transformer", "text_kv"]

RANKS: Final = (32, 64, 128, 256)  # that a graph is called with: the smallest in which all adapters fit
MOST_RANK: Final = RANKS[-1]

_OF_TEXT: Final = re.compile(r"text_embedding\..+|blocks\.\d+\.cross_attn\.[kv]")
_WEIGHT: Final = ".weight"


class AdaptedLayer(NamedTuple):
    """A layer y = x W, x [T, rows], y [T, columns], and where its factors are: down [first_row:, :],
    up [:, first_column:]."""

    name: str
    first_row: int
    rows: int
    first_column: int
    columns: int


def adapted_layers(config: TransformerConfig, network: Network) -> tuple[AdaptedLayer, ...]:
    """All linear layers of one of the two graphs, in the order of the weights."""
    return tuple(_layers(config, network))


def adapted_axes(config: TransformerConfig, network: Network) -> dict[str, int]:
    """Sizes of the axes of group `adapters` that the network fixes."""
    last = adapted_layers(config, network)[-1]
    return {"adapted_in": last.first_row + last.rows, "adapted_out": last.first_column + last.columns}


def stacked_rank(files: Sequence[AdapterFile]) -> int:
    """The rank of branches that take these files side by side: the smallest there is.

    Raises AdapterError: merge_only, or rank_budget with what they need and what there is.
    """
    needed = sum(file.rank for file in files)
    for file in files:
        if not file.low_rank_only:
            raise AdapterError(
                file.path,
                "merge_only",
                "it holds whole differences of weights (.diff), which cannot be turned while streaming. Load "
                "it with merge_mode permanent_merge.",
            )
    if needed > MOST_RANK:
        raise AdapterError(
            files[-1].path,
            "rank_budget",
            f"the ranks of the adapters beside the weights add up to {needed}, and there is room for "
            f"{MOST_RANK}. Load fewer, or some with merge_mode permanent_merge.",
        )
    return next(rank for rank in RANKS if rank >= needed)


def _layers(config: TransformerConfig, network: Network) -> Iterator[AdaptedLayer]:
    row = column = 0
    for key, shape in parameter_shapes(config).items():
        name = key.removesuffix(_WEIGHT)
        if len(shape) != 2 or name == key or (_OF_TEXT.fullmatch(name) is not None) != (network == "text_kv"):
            continue
        columns, rows = shape
        yield AdaptedLayer(name, row, rows, column, columns)
        row, column = row + rows, column + columns
