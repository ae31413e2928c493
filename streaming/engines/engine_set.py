"""Which engines make up a pipeline: `set.json`, written last by an export. Torch-free."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from streaming.checkpoints.config import TransformerConfig
from streaming.engines.manifest import sha256
from streaming.engines.records import EngineError, Record, read_record
from streaming.specs import LoopSpec

SET = "set.json"
TOKENIZER = "tokenizer"

# What runs an engine's graph: ONNX Runtime on the CPU, or TensorRT its plan on a GPU.
Variant = Literal["onnxruntime", "tensorrt"]


class VaeSet(Record):
    """Engines of the autoencoder for one size of picture, in pixels."""

    height: int
    width: int
    encoder_first: str
    encoder_next: str
    decoder_first: str
    decoder_next: str


class BranchSet(Record):
    """Engines of the VACE branch. blocks: of the branch."""

    transformer: str
    text_kv: str
    blocks: int


class MergedLora(Record):
    """A LoRA file that is merged into the weights."""

    file: str
    sha256: str
    scale: float


def merged_loras(files: Iterable[tuple[Path, float]]) -> tuple[MergedLora, ...]:
    """LoRA files and their scales, as the set keeps them that has them in its weights. Raises OSError."""
    found = (MergedLora(file=path.name, sha256=sha256(path), scale=scale) for path, scale in files)
    return tuple(sorted(found, key=lambda lora: (lora.sha256, lora.scale)))


class ModelFacts(Record):
    """Dimensions that come with the weights."""

    layers: int
    heads: int
    head_dim: int
    freq_dim: int
    text_len: int
    text_dim: int
    channels: int
    patch: tuple[int, int, int]
    spatial_factor: int
    ffn_dim: int | None = None  # None: the set was exported before there were adapters

    def transformer(self) -> TransformerConfig | None:
        """Sizes of the transformer; None when the set does not tell."""
        if self.ffn_dim is None:
            return None
        return TransformerConfig(
            dim=self.heads * self.head_dim,
            ffn_dim=self.ffn_dim,
            num_heads=self.heads,
            num_layers=self.layers,
            freq_dim=self.freq_dim,
            text_dim=self.text_dim,
            text_len=self.text_len,
            in_dim=self.channels,
            out_dim=self.channels,
            patch_size=self.patch,
        )

    @property
    def pixels_per_token(self) -> int:
        """In height and in width."""
        return self.spatial_factor * self.patch[1]


class FrameCuts(Record):
    """How the encoder cuts pixel frames, see `FrameGroups`."""

    first: int
    later: int
    repeat_last: bool
    at_once: int | None = None


class EngineSet(Record):
    """Names of engines by their part. The first entry of `vae` is the default size.

    cache_frames   slots of the transformer's cache, in latent frames
    padding_keys   slots of one token after them, see `LoopSpec`
    serve_with     what runs the engines; another set that shares them may choose otherwise
    gpus           numbers of the GPUs that run plans, with an instance of every engine on each
    window         attention window, in latent frames
    adapters       the transformer takes LoRA files beside its weights, see `streaming/adapters/stack.py`
    loras          merged into its weights, ordered by hash; such a set is made for a load that asks for these
    demo           random or tiny weights: only a stand-in
    note           a line for users about the weights
    examples       prompts that the weights understand
    branch         of VACE, if it was exported
    """

    name: str
    pipeline: str
    vae_type: str
    precision: str
    demo: bool
    note: str = ""
    examples: tuple[str, ...] = ()
    window: int
    cache_frames: int
    padding_keys: int = 0
    adapters: bool = False
    loras: tuple[MergedLora, ...] = ()
    model: ModelFacts
    frames: FrameCuts
    text_encoder: str
    text_kv: str
    transformer: str
    vae: tuple[VaeSet, ...]
    branch: BranchSet | None = None
    serve_with: Variant = "onnxruntime"
    gpus: tuple[int, ...] = (0,)

    def built_for(self, loop: LoopSpec) -> LoopSpec:
        """A pipeline's loop as these engines run it."""
        return replace(loop.with_window(self.window), padding_keys=self.padding_keys)

    def vae_for(self, height: int, width: int) -> VaeSet:
        """Raises EngineError with the sizes there are."""
        for found in self.vae:
            if (found.height, found.width) == (height, width):
                return found
        sizes = ", ".join(f"{v.height}x{v.width}" for v in self.vae)
        raise EngineError(
            f"No engines for {height}x{width}; there are {sizes} (height x width). Load one of them, or: "
            f"wanstream-export {self.pipeline} --size {height}x{width}."
        )

    def engines(self, size: tuple[int, int] | None = None, *, vace: bool = True) -> tuple[str, ...]:
        """Names of the engines, those first that others need.

        size: height and width of the pictures; None: of all sizes. vace: with the branch, if there is one.
        Raises EngineError, with the sizes there are, for one that is not among them.
        """
        chosen = self.vae if size is None else (self.vae_for(*size),)
        vae = [
            name
            for v in chosen
            for name in (v.encoder_first, v.encoder_next, v.decoder_first, v.decoder_next)
        ]
        branch = () if self.branch is None or not vace else (self.branch.text_kv, self.branch.transformer)
        return (self.text_encoder, self.text_kv, *vae, *branch, self.transformer)


def read_engine_set(directory: Path) -> EngineSet:
    """The set in `directory`. Raises EngineError when there is none that can be read."""
    return read_record(directory / SET, EngineSet, "There are no engines")
