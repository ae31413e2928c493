"""LoRA files of a load: checked before anything that runs is touched, and kept for as long as it runs."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from gateway.errors import ApiError
from gateway.serving.interface import ServingError
from streaming.adapters.files import AdapterError, look_into
from streaming.adapters.layers import stacked_rank
from streaming.adapters.values import require_finite
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.shapes import parameter_shapes
from streaming.engines.load_plan import PlannedAdapter
from streaming.engines.manifest import sha256
from streaming.specs import LoraMergeMode

logger = logging.getLogger(__name__)

RUNTIME: Final[LoraMergeMode] = "runtime_peft"
TAKES_NONE: Final = (
    "What is loaded takes no LoRA files while it runs: load the pipeline with lora_merge_mode runtime_peft."
)
COPY_HASH: Final = 24  # digits of the hash that begin the name of a copy


@dataclass(frozen=True, slots=True)
class Adapters:
    """Where LoRA files are.

    find    from what a client calls a file to its path; raises an error for people
    copies  directory of those that are loaded, which Triton's models can read
    """

    find: Callable[[str], Path]
    copies: Path

    def planned(
        self, load_params: Mapping[str, Any], config: TransformerConfig
    ) -> tuple[PlannedAdapter, ...]:
        """Those of a load; what is ignored in them is logged.

        config: of the transformer. Raises ServingError with the file and the class of its problem.
        """
        shapes, adapters = parameter_shapes(config), []
        for entry in load_params.get("loras") or ():
            try:
                path = self.find(entry["path"])
                file = look_into(path, shapes)
                require_finite(file)
            except (AdapterError, ApiError) as error:
                raise ServingError(str(error)) from error
            for warning in file.warnings:
                logger.warning("%s", warning)
            runtime = entry["merge_mode"] == RUNTIME
            adapters.append(
                PlannedAdapter(path=path, name=entry["path"], scale=entry["scale"], runtime=runtime)
            )
        require_room(adapters, config)
        return tuple(adapters)

    def keep(self, adapters: Sequence[PlannedAdapter]) -> tuple[PlannedAdapter, ...]:
        """The same as copies, whatever becomes of the files; earlier copies go. Raises ServingError."""
        kept = self.copied(adapters)
        self.forget_others(kept)
        return kept

    def copied(self, adapters: Sequence[PlannedAdapter]) -> tuple[PlannedAdapter, ...]:
        """The same as copies; what is one already stays. Raises ServingError."""
        try:
            return tuple(map(self._copied, adapters))
        except OSError as error:
            raise ServingError(f"A LoRA file cannot be copied to {self.copies}: {error}") from error

    def forget_others(self, adapters: Sequence[PlannedAdapter]) -> None:
        """Remove all copies but these. Raises ServingError."""
        used = {adapter.path for adapter in adapters}
        try:
            for path in self.copies.glob("*") if self.copies.is_dir() else ():
                if path not in used:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise ServingError(f"A LoRA file cannot be removed from {self.copies}: {error}") from error

    def _copied(self, adapter: PlannedAdapter) -> PlannedAdapter:
        if adapter.path.parent == self.copies:
            return adapter
        self.copies.mkdir(parents=True, exist_ok=True)
        partial = self.copies / f"{adapter.path.name}.part"
        shutil.copyfile(adapter.path, partial)  # and then its hash: the file may be changed meanwhile
        target = self.copies / f"{sha256(partial)[:COPY_HASH]}-{adapter.path.name}"
        partial.replace(target)
        return adapter.model_copy(update={"path": target})


@dataclass(frozen=True, slots=True)
class AdaptedLoad:
    """What is loaded and takes LoRA files beside its weights.

    config: of the transformer. files: that it has now, as copies
    """

    adapters: Adapters
    config: TransformerConfig
    files: tuple[PlannedAdapter, ...]

    def with_files(self, loras: Sequence[Mapping[str, Any]]) -> "AdaptedLoad":
        """The same with these entries of load parameter `loras`, new files copied. Raises ServingError."""
        known = {file.name: file for file in self.files}
        new = [entry for entry in loras if entry["path"] not in known]
        looked_at = {file.name: file for file in self.adapters.planned({"loras": new}, self.config)}
        wanted = [(known | looked_at)[entry["path"]] for entry in loras]
        require_room(wanted, self.config)
        return replace(self, files=self.adapters.copied(wanted))

    def forget_others(self) -> None:
        """Remove copies of files that it does not have. Raises ServingError."""
        self.adapters.forget_others(self.files)


def live_adapters(load_params: Mapping[str, Any]) -> bool:
    """Whether a load asks for LoRA files beside the weights, now or later."""
    loras = load_params.get("loras") or ()
    return load_params.get("lora_merge_mode") == RUNTIME or any(x["merge_mode"] == RUNTIME for x in loras)


def require_room(adapters: Sequence[PlannedAdapter], config: TransformerConfig) -> None:
    """Raises ServingError unless those that lie beside the weights can do so together."""
    shapes = parameter_shapes(config)
    try:
        stacked_rank([look_into(adapter.path, shapes) for adapter in adapters if adapter.runtime])
    except AdapterError as error:
        raise ServingError(str(error)) from error
