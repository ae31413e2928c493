"""The names and shapes that a checkpoint is expected to have, against those of the network."""

from export.checkpoints.checkpoints import checkpoint_shapes
from export.checkpoints.load import transformer_modules
from streaming.checkpoints.config import WAN_1_3B, TransformerConfig
from streaming.checkpoints.shapes import parameter_shapes
from streaming.specs import CachedKeys


def test_they_are_those_of_the_network() -> None:
    small = TransformerConfig(dim=48, ffn_dim=80, num_heads=4, num_layers=2, freq_dim=16, text_dim=24)

    for config in (small, WAN_1_3B):
        expected = checkpoint_shapes(*transformer_modules(config, CachedKeys.ROTATED))
        assert parameter_shapes(config) == expected
