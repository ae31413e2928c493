"""What LoRA files beside the weights cost: a denoising call with branches of several ranks against none.

    python -m benchmarks.lora

`nano`: the demonstration's transformer, a chunk of 96x96 pictures. `layers`: some blocks of a network as wide
as Wan 1.3B with random weights, a chunk of `--tokens` tokens. One thread, and the time that the CPU spends on
it: others on the machine change less of it. Calls of all ranks take turns; the median of each counts. Then
what a merge of one file adds to a load, and what the factors take.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import add_out_option, write_result
from export.checkpoints.checkpoints import load_weights
from export.checkpoints.demo import trained_weights, write_demo_models
from export.checkpoints.load import open_transformer
from export.checkpoints.lora_merge import ScaledAdapter
from export.graphs.transformer import TextKV, Transformer
from export.pytorch.engine import ModuleEngine
from streaming.adapters.layers import adapted_axes
from streaming.checkpoints.config import WAN_1_3B, TransformerConfig
from streaming.checkpoints.files import TRANSFORMER_FILES, read_config
from streaming.engines.demo import demo_adapters
from streaming.network.inputs import FLOW

RANKS = (0, 32, 64, 128)
CACHED_CHUNKS = 3  # of the window, beside the chunk itself


def denoising_calls(config: TransformerConfig, tokens: int) -> dict[int, Callable[[], Any]]:
    """A call of each rank, 0 without branches, on the same random weights and inputs."""
    torch.manual_seed(0)
    plain, adapted = Transformer(config), Transformer(config, adapted=True)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    adapted.load_state_dict(plain.state_dict())
    frames, cached = 3, CACHED_CHUNKS * tokens
    sizes = {"F": frames, "T": tokens, "S+T": cached + tokens}
    calls: dict[int, Callable[[], Any]] = {}
    for rank in RANKS:
        module = adapted if rank else plain
        signature = module.signature(cached)
        engine = ModuleEngine(module, signature)
        inputs = random_inputs(signature, {**sizes, "R": rank})
        calls[rank] = lambda engine=engine, inputs=inputs: engine.run(inputs, [FLOW])
    return calls


def random_inputs(signature: Any, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    values = signature.example(sizes)
    return {s.name: 0.1 * torch.randn(v.shape) for s, v in zip(signature.inputs, values, strict=True)}


def measure(calls: Mapping[int, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Median milliseconds of the CPU by rank, and the ratio to none."""
    times: dict[int, list[float]] = {rank: [] for rank in calls}
    for number in range(repeats + 1):
        for rank, call in calls.items():
            began = time.thread_time()
            call()
            if number:  # the first one warms up
                times[rank].append(1e3 * (time.thread_time() - began))
    medians = {rank: statistics.median(values) for rank, values in times.items()}
    return {
        str(rank): {"ms": round(ms, 3), "ratio": round(ms / medians[0], 4)} for rank, ms in medians.items()
    }


def factor_bytes(config: TransformerConfig, rank: int, item: int) -> int:
    """Of all files together, in both graphs."""
    axes = [adapted_axes(config, network) for network in ("transformer", "text_kv")]
    return sum(rank * (a["adapted_in"] + a["adapted_out"]) * item for a in axes)


def merge_seconds(repeats: int) -> dict[str, float]:
    """Median seconds of the CPU to read the demonstration's weights, without and with a merged file."""
    path = demo_adapters() / "outlined-shapes.safetensors"
    with TemporaryDirectory() as directory:
        models = Path(directory)
        write_demo_models(models, trained_weights())
        files = TRANSFORMER_FILES["longlive"]
        config = read_config(models / files.config)
        found: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(repeats):
            for name, adapters in (("without", []), ("with", [ScaledAdapter(path, 1.0)])):
                began = time.thread_time()
                load_weights(open_transformer(models, files, adapters), Transformer(config), TextKV(config))
                found[name].append(time.thread_time() - began)
    return {name: round(statistics.median(values), 4) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=540, help="of a chunk; 540: 3 latent frames of 192x240")
    parser.add_argument("--repeats", type=int, default=15)
    add_out_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    nano = trained_weights().config
    wide = replace(WAN_1_3B, num_layers=arguments.layers)
    result = {
        "precision": "float32, PyTorch, one thread, CPU time",
        "nano": measure(denoising_calls(nano, 3 * 36), 4 * arguments.repeats),
        "layers": {
            "count": arguments.layers,
            "dim": wide.dim,
            "tokens": arguments.tokens,
            **measure(denoising_calls(wide, arguments.tokens), arguments.repeats),
        },
        "load_s": merge_seconds(arguments.repeats),
        "factor_bytes": {
            "nano, float32": {str(rank): factor_bytes(nano, rank, 4) for rank in RANKS[1:]},
            "Wan 1.3B, bfloat16": {str(rank): factor_bytes(WAN_1_3B, rank, 2) for rank in RANKS[1:]},
        },
    }
    print(write_result(arguments.out, "lora", result))


if __name__ == "__main__":
    main()
