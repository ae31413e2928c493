"""Which files of the directory of models a pipeline is made of (wan.md 7.1). Torch-free."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from streaming.checkpoints.config import WAN_1_3B, WAN_14B, TransformerConfig
from streaming.checkpoints.stand_ins import stand_in
from streaming.errors import WanstreamError
from streaming.specs import VaeType

_BASE: Final = "Wan2.1-T2V-1.3B"
TOKENIZER: Final = f"{_BASE}/google/umt5-xxl"
TEXT_ENCODER: Final = "WanVideo_comfy/umt5-xxl-enc-fp8_e4m3fn.safetensors"
DOWNLOADED_VAE: Final[VaeType] = "wan"  # comes with the other weights; the others are brought by hand
VAE_FILES: Final[dict[VaeType, str]] = {
    "wan": f"{_BASE}/Wan2.1_VAE.pth",
    "lightvae": "Autoencoders/lightvaew2_1.pth",
    "tae": "Autoencoders/taew2_1.pth",
    "lighttae": "Autoencoders/lighttaew2_1.pth",
}


@dataclass(frozen=True, slots=True)
class TransformerFiles:
    """Where a pipeline's transformer lies below the directory of models.

    entry     state dict of the file, where it holds several; the first one of several names that is there
    adapter   file of the adapter that belongs to the weights, and its alpha
    published   what the released files hold
    vace      file of the VACE branch, a module's or a full VACE checkpoint
    """

    weights: str
    entry: str | tuple[str, ...] | None = None
    adapter: tuple[str, float] | None = None
    config: str = f"{_BASE}/config.json"
    published: TransformerConfig = WAN_1_3B
    vace: str = "WanVideo_comfy/Wan2_1-VACE_module_1_3B_bf16.safetensors"
    published_vace_blocks: int = 15


TRANSFORMER_FILES: Final[dict[str, TransformerFiles]] = {
    "longlive": TransformerFiles(
        "LongLive-1.3B/models/longlive_base.pt", "generator", ("LongLive-1.3B/models/lora.pt", 256.0)
    ),
    "streamdiffusionv2": TransformerFiles("StreamDiffusionV2/wan_causal_dmd_v2v/model.pt", "generator"),
    # A flat file, or one with several state dicts: the authors' script prefers the averaged weights.
    "reward-forcing": TransformerFiles(
        "Reward-Forcing-T2V-1.3B/rewardforcing.pt", ("generator_ema", "generator")
    ),
    "memflow": TransformerFiles("MemFlow/base.pt", "generator", ("MemFlow/lora.pt", 256.0)),
    "krea-realtime-video": TransformerFiles(
        "krea-realtime-video/krea-realtime-video-14b.safetensors",
        config="Wan2.1-T2V-14B/config.json",
        published=WAN_14B,
        vace="WanVideo_comfy/Wan2_1-VACE_module_14B_bf16.safetensors",
        published_vace_blocks=8,
    ),
}


# Of preprocessors of control video, by their names.
PREPROCESSOR_FILES: Final = {
    "video-depth-anything": "Video-Depth-Anything-Small/video_depth_anything_vits.pth"
}


class CheckpointError(WanstreamError):
    """A checkpoint file cannot be read or does not fit the model."""


def require_file(path: Path) -> None:
    """Raises CheckpointError if the file is absent, or a web page or pointer in its place."""
    if not path.is_file():
        raise CheckpointError(
            f"Checkpoint '{path}' does not exist. Download the models: download_models --pipeline PIPELINE."
        )
    what = stand_in(path)
    if what is not None:
        raise CheckpointError(f"Checkpoint '{path}' is {what}.")


def read_config(path: Path) -> TransformerConfig:
    """The transformer's sizes from config.json. Raises WanstreamError if it is absent, damaged or foreign."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"'{path}' does not exist. Download the models: download_models --pipeline PIPELINE."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"'{path}' is damaged ({error}). Delete it and download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"'{path}' holds no JSON object. Delete it and download it again.")
    return TransformerConfig.from_json(values)
