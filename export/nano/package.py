"""The files of the nano checkpoint: each part once, 16 bit, under the keys of real checkpoints (wan.md 7).

`export.checkpoints.demo` reads them and lays them out as the files of each pipeline.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from export.checkpoints.checkpoints import checkpoint_shapes
from export.graphs.layers import Linear
from export.graphs.text_encoder import TextEncoder
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae import WanVae
from export.nano.text import tokenizer
from streaming.checkpoints.config import TransformerConfig
from streaming.engines.demo import DemoInfo

STORED: Final = torch.float16
NOTE: Final = (
    "A tiny demonstration model: it knows eight colours, four shapes and six motions, and no other words."
)
EXAMPLES: Final = (
    "a large red circle moves left on a blue background",
    "a yellow star pulses on a black background",
    "a green square moves up on a white background",
    "a white triangle stays still on a purple background",
    "a small black circle moves down on a cyan background",
    "what the camera shows",
)


def write_weights(
    directory: Path,
    config: TransformerConfig,
    size: tuple[int, int],
    parameters: Mapping[str, Tensor],
    vae: WanVae,
    encoder: TextEncoder,
) -> None:
    """Write trained parts.

    size        height and width in pixels of the pictures that they were trained on
    parameters  of the transformer, by name in its modules
    """
    directory.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        modules = Transformer(config), TextKV(config)
    save_file(checkpoint_state(*modules, values=parameters), directory / "transformer.safetensors")
    save_file(checkpoint_state(vae), directory / "vae.safetensors")
    save_file(checkpoint_state(encoder), directory / "text_encoder.safetensors")
    tokenizer().save(str(directory / "tokenizer.json"))
    about = DemoInfo(height=size[0], width=size[1], note=NOTE, examples=EXAMPLES)
    values = asdict(config) | {"model_type": "t2v"} | about.model_dump(exclude={"version"})
    (directory / "config.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def checkpoint_state(*modules: nn.Module, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A checkpoint's keys and tensors, 16 bit, of modules that share one; `values` in place of their own."""
    state: dict[str, Tensor] = {}
    for module in modules:
        for path, owner in module.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                key = f"{path}.{name}" if path else name
                value = (values or {}).get(key, parameter).detach()
                if isinstance(owner, Linear) and name == "weight_t":
                    key = key.removesuffix("_t")
                    value = value.t().reshape(owner.checkpoint_shape)
                state[key] = value.to(STORED).contiguous()
    assert {key: tuple(value.shape) for key, value in state.items()} == checkpoint_shapes(*modules)
    return state
