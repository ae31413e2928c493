"""The demonstration checkpoint: tiny trained networks in the real files and key names, or random ones.

The trained ones (export/nano) know a world of flat shapes. Random weights show that everything works, not
what a model can do; tests use them for other sizes. Any directory of the same layout (wan.md 7.1) takes their
place: point `wanstream-export --models` at it. `demo.json` in it holds the size of picture that it is for.
"""

import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from export.checkpoints.checkpoints import Shape, checkpoint_shapes
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from export.graphs.transformer import TextKV, Transformer
from export.graphs.vae import VaeConfig, WanVae
from export.onnx.jobs import Size
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.files import TEXT_ENCODER, TOKENIZER, TRANSFORMER_FILES, VAE_FILES
from streaming.engines.demo import (
    DEMO,
    TRAINED_CONFIG,
    TRAINED_VACE,
    DemoInfo,
    read_demo,
    trained_directory,
)
from streaming.engines.manifest import file_info, fingerprint

_SIZE: Final = (128, 192)
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
_TRANSFORMER: Final = TransformerConfig(
    dim=128, ffn_dim=512, num_heads=4, num_layers=2, text_dim=128, text_len=128
)
_VAE: Final = VaeConfig(dim=8)
_ADAPTER_RANK: Final = 1


def ensure_demo_models(directory: Path) -> Path:
    """Write the trained checkpoint set into `directory` unless it is there; returns the directory.

    It appears complete or not at all. The values are the same on every machine. Weights that an older version
    of this package wrote are replaced; somebody's own stay. Raises WanstreamError when demo.json is damaged.
    """
    if (directory / DEMO).is_file() and read_demo(directory).version in ("", trained_version()):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        write_demo_models(partial, trained_weights(), vace=True)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


@dataclass(frozen=True, eq=False, slots=True)
class DemoWeights:
    """The parts of a demonstration checkpoint, by the keys of real ones.

    about: the size of the pictures that it is meant for, and what it understands
    """

    config: TransformerConfig
    about: DemoInfo
    transformer: dict[str, Tensor]
    vae: dict[str, Tensor]
    text_encoder: dict[str, Tensor]
    tokenizer: Tokenizer
    vace: dict[str, Tensor] | None = None  # None: there is no branch


def write_demo_models(
    directory: Path,
    weights: DemoWeights,
    pipelines: Collection[str] = TRANSFORMER_FILES,
    *,
    vace: bool = False,
) -> None:
    """Write the files of these pipelines; all of them have the same transformer. vace: with the branch."""
    shapes = {key: tuple(value.shape) for key, value in weights.transformer.items()}
    for files in map(TRANSFORMER_FILES.__getitem__, pipelines):
        entry = files.entry if isinstance(files.entry, str) else None
        _save(directory / files.weights, weights.transformer, entry)
        if files.adapter is not None:
            _save(directory / files.adapter[0], _empty_adapter(shapes), "generator_lora")
        if vace and weights.vace is not None:
            _save(directory / files.vace, weights.vace)
        _write_json(directory / files.config, _config_json(weights.config))
    _save(directory / VAE_FILES["wan"], weights.vae)
    _save(directory / TEXT_ENCODER, weights.text_encoder)
    _make_parent(directory / TOKENIZER / "tokenizer.json")
    weights.tokenizer.save(str(directory / TOKENIZER / "tokenizer.json"))
    _write_json(
        directory / TOKENIZER / "tokenizer_config.json",
        {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN},
    )
    _write_json(directory / DEMO, weights.about.model_dump())


def trained_weights(directory: Path | None = None) -> DemoWeights:
    """The nano checkpoint, or another one in the layout that `export.nano` writes."""
    directory = directory or trained_directory()
    config = json.loads((directory / TRAINED_CONFIG).read_text(encoding="utf-8"))
    vace = directory / TRAINED_VACE
    about = {"version": trained_version(directory), "vace": vace.is_file()}
    return DemoWeights(
        config=TransformerConfig.from_json(config),
        about=DemoInfo.model_validate(config | about),
        transformer=load_file(directory / "transformer.safetensors"),
        vae=load_file(directory / "vae.safetensors"),
        text_encoder=load_file(directory / "text_encoder.safetensors"),
        tokenizer=Tokenizer.from_file(str(directory / "tokenizer.json")),
        vace=load_file(vace) if vace.is_file() else None,
    )


def trained_version(directory: Path | None = None) -> str:
    """Of the weights in a directory: other files, another version. Loads none of them."""
    files = sorted((directory or trained_directory()).iterdir())
    return fingerprint({path.name: file_info(path).sha256 for path in files if path.suffix != ".md"})


def random_weights(
    transformer: TransformerConfig = _TRANSFORMER,
    vae: VaeConfig = _VAE,
    size: Size = _SIZE,
    dtype: torch.dtype = torch.float32,
) -> DemoWeights:
    """Random weights of these sizes, the same on every machine, and a tokenizer."""
    tokenizer = demo_tokenizer()
    encoder = TextEncoderConfig(
        vocab=tokenizer.get_vocab_size(),
        dim=transformer.text_dim,
        dim_attn=transformer.text_dim,
        dim_ffn=2 * transformer.text_dim,
        num_heads=4,
        num_layers=2,
        seq_len=transformer.text_len,
    )
    with torch.device("meta"):
        generator = checkpoint_shapes(Transformer(transformer), TextKV(transformer))
        vae_shapes, text_shapes = checkpoint_shapes(WanVae(vae)), checkpoint_shapes(TextEncoder(encoder))
    return DemoWeights(
        config=transformer,
        about=DemoInfo(height=size[0], width=size[1]),
        transformer=random_state(generator, 1, dtype),
        vae=random_state(vae_shapes, 2, dtype),
        text_encoder=random_state(text_shapes, 3, dtype),
        tokenizer=tokenizer,
    )


def demo_tokenizer() -> Tokenizer:
    """One token per byte, so that every prompt differs from every other; the end token follows."""
    vocabulary = {token: i for i, token in enumerate((PAD, END, UNKNOWN, *sorted(ByteLevel.alphabet())))}
    tokenizer = Tokenizer(BPE(vocabulary, [], unk_token=UNKNOWN))
    tokenizer.add_special_tokens([PAD, END, UNKNOWN])
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, vocabulary[END])])
    return tokenizer


def random_state(
    shapes: Mapping[str, Shape], seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random tensors that keep activations near one: gains around one, biases around zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        fan_in = noise[0].numel()
        if key.endswith(".bias"):
            values = 0.02 * noise
        else:
            values = 1 + 0.1 * noise if fan_in == 1 else noise / fan_in**0.5
        state[key] = values.to(dtype)
    return state


def _empty_adapter(shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """An adapter of the blocks' matrices that changes nothing: it makes the merge run."""
    adapter: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2:
            name = f"base_model.model.{key.removesuffix('.weight')}"
            adapter[f"{name}.lora_A.weight"] = torch.ones(_ADAPTER_RANK, shape[1])
            adapter[f"{name}.lora_B.weight"] = torch.zeros(shape[0], _ADAPTER_RANK)
    return adapter


def _config_json(config: TransformerConfig) -> dict[str, object]:
    return {
        "model_type": "t2v",
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "text_len": config.text_len,
        "in_dim": config.in_dim,
        "out_dim": config.out_dim,
        "eps": config.eps,
    }


def _save(path: Path, state: dict[str, Tensor], entry: str | None = None) -> None:
    """In the format that the name says; `entry` is a state dict among others in the file."""
    _make_parent(path)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({entry: state} if entry else state, path)


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    _make_parent(path)
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _make_parent(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
