"""A checkpoint streamed by the real server with PyTorch, to a real viewer: fps, chunk, first picture, memory.

    python -m benchmarks.gpu.serve --limit 480

Random weights of the real 1.3B shapes in a checkpoint of the released layout (but a small text encoder), the
embedded Triton, an aiortc viewer in a process of its own. First both sizes and autoencoders as they are, then
832x480 with the tiny one and one switch of docs/gpu.md after the other turned over. Each is written as
it comes; none begins after --limit seconds. `gpu_mb`: of the card with it loaded; `planned_mb`: by the
plan.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.common import BenchmarkError, Server, gateway, load_pipeline
from benchmarks.gpu.common import Result, Row, need_device
from benchmarks.latency_runs import Workload, measure_served
from benchmarks.results import add_out_option
from export.checkpoints.checkpoints import checkpoint_shapes
from export.checkpoints.demo import random_state, random_weights, write_demo_models
from export.checkpoints.load import published_vae
from export.graphs.vae import VaeConfig
from streaming.checkpoints.config import WAN_1_3B, TransformerConfig
from streaming.checkpoints.files import VAE_FILES
from streaming.engines.load_plan import TorchSwitches
from streaming.memory.machine import gpu_memory_bytes
from streaming.specs import LONGLIVE, TEXT

LIMIT_S = 480.0
LARGE, SMALL = (480, 832), (320, 576)
TINY = TransformerConfig(dim=16, ffn_dim=24, num_heads=2, num_layers=1, text_dim=16, text_len=12)
TINY_SIZE = (64, 80)


@dataclass(frozen=True)
class Case:
    """What is streamed. turned: switches that are not as they are by default."""

    size: tuple[int, int]
    vae: str
    turned: tuple[str, ...] = field(default=())

    @property
    def env(self) -> dict[str, str]:
        defaults = TorchSwitches().model_dump()
        return {f"WANSTREAM_PYTORCH_{n.upper()}": "off" if defaults[n] else "on" for n in self.turned}


CASES = (  # the most wanted first: a run may be cut off
    *(Case(size, vae) for size in (LARGE, SMALL) for vae in ("tae", "wan")),
    *(Case(LARGE, "tae", (name,)) for name in TorchSwitches.model_fields),
)


def main() -> None:
    """Run the benchmark from the command line."""
    options = parse_options()
    need_device(options.device)
    began = time.monotonic()
    result = Result("serve", options)
    with tempfile.TemporaryDirectory(prefix="wanstream-serve-") as name:
        home = Path(name)
        write_checkpoint(home / "models", tiny=options.tiny)
        for case in (Case(TINY_SIZE, "wan"),) if options.tiny else CASES:
            if time.monotonic() - began > options.limit:
                print(f"Not measured, the time is over: {case}", flush=True)
                continue
            result.add(measure(case, home, options))
    result.finish()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--tiny", action="store_true", help="a small checkpoint, to try the script")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds after which no case begins")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each steady stream")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the server")
    add_out_option(parser)
    return parser.parse_args()


def write_checkpoint(models: Path, *, tiny: bool) -> None:
    """LongLive's files with random weights, and both autoencoders."""
    config, vae = (TINY, VaeConfig(dim=4)) if tiny else (WAN_1_3B, VaeConfig())
    weights = random_weights(config, vae, LARGE, torch.float32 if tiny else torch.bfloat16)
    write_demo_models(models, weights, ["longlive"])
    shapes = checkpoint_shapes(published_vae("tae"))
    path = models / VAE_FILES["tae"]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(random_state(shapes, 4), path)


def measure(case: Case, home: Path, options: argparse.Namespace) -> Row:
    """One server with the case's switches, one load, one viewer. A failure is a result too."""
    height, width = case.size
    row: Row = {"picture": f"{width}x{height}", "vae": case.vae, "turned": ", ".join(case.turned)}
    env = case.env | {"WANSTREAM_PYTORCH_DEVICE": options.device.partition(":")[0]}
    work = Workload(
        LONGLIVE, TEXT, case.size, options.seconds, changes=1 if options.tiny else 3, connections=2
    )
    try:
        with gateway(home=home, env=env, python=options.python) as server:
            began = time.monotonic()
            status = load(server, case)
            row["load_s"] = round(time.monotonic() - began, 1)
            numbers = measure_served(server, work, None)
            memory = gpu_memory_bytes() if options.device != "cpu" else None
    except (BenchmarkError, OSError) as error:
        return row | {"error": str(error).strip().splitlines()[-1][:300]}
    plan = status["load_plan"]
    row |= {"precision": plan["precision"], "planned_mb": round(plan["memory"]["total_bytes"] / 1e6)}
    row["gpu_mb"] = None if memory is None else round(memory[0] / 1e6)
    row |= {"chunk_p50_ms": numbers["chunk_ms"]["p50"], "fps": numbers["fps"]}
    row |= {f"{name}_ms": value for name, value in numbers["split_ms"].items()}
    row |= {f"first_picture_{name}_ms": value for name, value in numbers["first_frame_ms"].items()}
    return row | {"prompt_to_picture_ms": (numbers["prompt_to_picture_ms"] or {}).get("p50"), "all": numbers}


def load(server: Server, case: Case) -> Row:
    """Load the checkpoint; the status then. Raises BenchmarkError."""
    height, width = case.size
    return load_pipeline(server, "longlive", backend="pytorch", height=height, width=width, vae_type=case.vae)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "4")  # of the server: its cores encode, too
    main()
