"""Replays about checkpoint files: keys and shapes of full-size modules, and files that only hold weights."""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import nn

from export.checkpoints.checkpoints import Shape, checkpoint_shapes
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae import VaeConfig, WanVae
from streaming.checkpoints.config import TransformerConfig
from tests.golden.case import GoldenCase

Shapes = Mapping[str, Shape]


def transformer_of(shapes: Shapes) -> list[nn.Module]:
    """Sizes are read from shapes; the number of heads is in none of them and changes none."""
    dim, in_dim, *patch = shapes["patch_embedding.weight"]
    config = TransformerConfig(
        dim=dim,
        ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
        num_heads=1,
        num_layers=1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
        freq_dim=shapes["time_embedding.0.weight"][1],
        text_dim=shapes["text_embedding.0.weight"][1],
        in_dim=in_dim,
        out_dim=shapes["head.head.weight"][0] // prod(patch),
        patch_size=(patch[0], patch[1], patch[2]),
    )
    return [Transformer(config), TextKV(config)]


def text_encoder_of(shapes: Shapes) -> list[nn.Module]:
    return [TextEncoder(TextEncoderConfig.from_shapes(shapes, seq_len=8))]


def wan_vae_of(shapes: Shapes) -> list[nn.Module]:
    return [WanVae(VaeConfig.from_shapes(shapes))]


def tiny_vae_of(shapes: Shapes) -> list[nn.Module]:
    return [TinyVae(TinyVaeConfig.from_shapes(shapes, normalized=False))]


BUILDERS: dict[str, Callable[[Shapes], list[nn.Module]]] = {  # by a key that only this family has
    "patch_embedding.weight": transformer_of,
    "token_embedding.weight": text_encoder_of,
    "encoder.conv1.weight": wan_vae_of,
    "encoder.0.weight": tiny_vae_of,
}


def replay_checkpoint_keys(case: GoldenCase) -> None:
    """Modules of full size, on the meta device, have exactly the recorded keys and shapes."""
    for name, entry in case.values.items():
        recorded = {key: tuple(shape) for key, shape in entry.get("keys", entry.get("patterns")).items()}
        recorded = expand_layers(recorded, entry.get("num_layers", 0))
        builders = [build for key, build in BUILDERS.items() if key in recorded]
        case.assert_equal(f"values.{name}: families that it could be of", len(builders), 1)

        with torch.device("meta"):
            actual = checkpoint_shapes(*builders[0](recorded))

        different = {key for key in actual.keys() | recorded.keys() if actual.get(key) != recorded.get(key)}
        case.assert_equal(f"values.{name}: keys that differ", sorted(different), [])
        case.assert_equal(f"values.{name}.keys_total", len(actual), entry["keys_total"])
        case.assert_equal(f"values.{name}.parameters", sum(map(prod, actual.values())), entry["parameters"])


def expand_layers(patterns: Shapes, num_layers: int) -> dict[str, Shape]:
    """Write `{i}` out for every layer."""
    return {
        key.replace("{i}", str(i)): shape
        for key, shape in patterns.items()
        for i in range(num_layers if "{i}" in key else 1)
    }


def replay_weights(case: GoldenCase) -> None:
    """The weights that other cases use can be read and are as many as the case says."""
    entries = case.checkpoint().entries
    case.assert_equal("weights.count", len(entries), case.meta["weights"]["count"])
    parameters = sum(prod(entry.shape) for entry in entries.values())
    case.assert_equal("weights.parameters", parameters, case.meta["weights"]["parameters"])


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {
    "wan.checkpoint_keys": replay_checkpoint_keys,
    "weights": replay_weights,
}
