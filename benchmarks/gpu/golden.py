"""Do the networks reproduce the golden cases on the GPU in float32?

    python -m benchmarks.gpu.golden

The recorded cases below `WANSTREAM_GOLDEN`, else beside the repository, else its own subset, replayed as
`pytest tests/golden` does, but with every network on the device. TF32 is off, and the tolerances are those
that were recorded. What is not a network stays on the CPU; `precision` proves the rest of the loop on the
GPU. Exit code 1: a case differs.
"""

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu.common import Result, Row, parse
from export.graphs.signature import Signature
from streaming.engines.engine import Engine, TorchEngine
from tests.golden.case import GoldenCase, discover, golden_directory
from tests.golden.exported_cases import REPLAYS
from tests.golden.replays.stream import replay_stream, torch_modules
from tests.golden.replays.stream_cases import StreamCase

Call = Callable[..., Sequence[Tensor]]


def main() -> None:
    """Run the cases from the command line."""
    options = parse(__doc__)
    device = torch.device(options.device)
    result = Result("golden", options, precision="float32")
    cases = [case for case in discover(golden_directory()) if case.kind in (*REPLAYS, "stream")]
    for case in cases[:2] if options.tiny else cases:
        result.add(replay(case, device))
    result.finish()
    wrong = sum("error" in row for row in result.rows)
    print(f"{len(result.rows) - wrong} of {len(result.rows)} cases agree on {device}")
    sys.exit(wrong > 0)


def replay(case: GoldenCase, device: torch.device) -> Row:
    """One case: which tensors were compared, or what differs."""
    row: Row = {"case": str(case), "kind": case.kind}
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            if case.kind == "stream":
                replay_stream(case, partial(engines_on, device))
            else:
                REPLAYS[case.kind](case, partial(on_device, device))  # type: ignore[arg-type]
    except Exception as error:  # that one fails must not hide the others
        row["error"] = str(error).split("\n", 1)[0][:300]
    return row | {"tensors": len(case.compared), "s": time.perf_counter() - began}


def on_device(
    device: torch.device, module: nn.Module, signature: Signature, sizes: Mapping[str, int]
) -> Call:
    """The graph on the device: inputs go there and outputs come back (a `Place`)."""
    there = copy.deepcopy(module).to(device)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        results: Sequence[Tensor] | Tensor = there(**signature.arguments(t.to(device) for t in tensors))
        return tuple(r.cpu() for r in ((results,) if isinstance(results, Tensor) else results))

    return call


def engines_on(device: torch.device, stream: StreamCase) -> tuple[Engine, Engine]:
    """Transformer and text side of a stream."""
    transformer, text_kv = torch_modules(stream)
    made = ((transformer, transformer.signature(0)), (text_kv, text_kv.signature()))
    first, second = (TorchEngine(on_device(device, m, s, {}), *names(s)) for m, s in made)
    return first, second


def names(signature: Signature) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(spec.name for spec in signature.inputs), tuple(spec.name for spec in signature.outputs)


if __name__ == "__main__":
    main()
