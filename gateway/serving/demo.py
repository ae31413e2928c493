"""The demonstration engines of an embedded server: exported by itself, the first time that they are needed.

Exporting needs PyTorch, so it happens in a process of its own: `wanstream-export PIPELINE --demo`. What it
has finished is kept, so an export that was cut short goes on where it stopped.
"""

import importlib.util
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from gateway.serving.commands import EXPORT, run_command
from gateway.serving.interface import ServingError, StageCallback
from streaming.engines.demo import DEMO_MODELS, DEMO_PIPELINES, DemoInfo, demo_info
from streaming.source_version import source_version
from streaming.specs import PipelineSpec

logger = logging.getLogger(__name__)

_PACKAGES = ("onnx", "onnxscript")  # beside those that streaming needs
_SOURCES = ("export", "streaming")
_STEP = re.compile(r"\[(\d+)/(\d+)\]")
_LAST_LINES = 5


class DemoEngines:
    """Knows whether the demonstration engines are there, and makes them."""

    def __init__(self, home: Path, engines: Path, command: Sequence[str] | None = None) -> None:
        """home: where the checkpoint is kept. engines: directory that the export writes to.

        command: the export, without its arguments; None: this installation's.
        """
        self._home, self._engines = home, engines
        self._command = command or EXPORT

    def offers(self, spec: PipelineSpec) -> bool:
        """Whether there is a demonstration of this pipeline, and what makes it is installed."""
        return spec.id in DEMO_PIPELINES and all(importlib.util.find_spec(name) for name in _PACKAGES)

    @property
    def info(self) -> DemoInfo:
        """What the engines show or will show, and at which size."""
        return demo_info(self._home / DEMO_MODELS)

    def is_current(self, spec: PipelineSpec, *, adapters: bool = False) -> bool:
        """Whether the engines were made by this version of the source. adapters: as of `make`"""
        try:
            return self._stamp(spec, adapters).read_text(encoding="ascii") == source_version(*_SOURCES)
        except (OSError, ValueError):
            return False

    async def make(
        self, spec: PipelineSpec, on_stage: StageCallback, *, adapters: bool = False, vace: bool = False
    ) -> None:
        """Export what is missing. Raises ServingError that says why it failed. May be cancelled.

        adapters: engines that take LoRA files beside their weights, which are not made before somebody asks
        vace: with the VACE branch, as little
        """
        on_stage("Preparing the demonstration model; this happens only once...")
        arguments = [spec.id, "--demo", "--wait", "--home", str(self._home), "--out", str(self._engines)]
        arguments += ["--adapters"] * adapters + ["--vace"] * vace
        said: list[str] = []

        def follow(line: str) -> None:
            """Log it, and turn steps into stages."""
            logger.info("Export: %s", line)
            if step := _STEP.match(line):
                on_stage(f"Preparing the demonstration model: {step[1]} of {step[2]} engines are ready...")
            else:
                said.append(line)

        code = await run_command([*self._command, *arguments], self._home, follow)
        if code != 0:
            reason = " ".join(said[-_LAST_LINES:]).removeprefix("Error: ") or f"exit code {code}"
            raise ServingError(
                f"the demonstration engines could not be made: {reason} Passthrough works without them; the "
                f"export can be repeated by hand: wanstream-export {spec.id} --demo."
            )
        self._stamp(spec, adapters).write_text(source_version(*_SOURCES), encoding="ascii")

    def _stamp(self, spec: PipelineSpec, adapters: bool) -> Path:
        return self._engines / f".demo-{spec.id}{'-adapters' * adapters}"
