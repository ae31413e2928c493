"""LoRA files of a load: checked before anything that runs is touched, and kept for as long as it runs."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import ApiError
from gateway.serving.interface import ServingError
from streaming.adapters.files import AdapterError, look_into
from streaming.adapters.values import require_finite
from streaming.checkpoints.config import TransformerConfig
from streaming.checkpoints.shapes import parameter_shapes
from streaming.engines.load_plan import PlannedAdapter

logger = logging.getLogger(__name__)

_NAME_BYTES = 12


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
            adapters.append(PlannedAdapter(path=path, name=entry["path"], scale=entry["scale"]))
        return tuple(adapters)

    def keep(self, adapters: Sequence[PlannedAdapter]) -> tuple[PlannedAdapter, ...]:
        """The same as copies, whatever becomes of the files; earlier copies go. Raises ServingError."""
        kept = []
        try:
            for adapter in adapters:
                target = self.copies / f"{_hash(adapter.path)[: 2 * _NAME_BYTES]}-{adapter.path.name}"
                if not target.is_file():
                    self.copies.mkdir(parents=True, exist_ok=True)
                    partial = target.with_name(f"{target.name}.part")
                    shutil.copyfile(adapter.path, partial)
                    partial.replace(target)
                kept.append(adapter.model_copy(update={"path": target}))
            used = {adapter.path for adapter in kept}
            for path in self.copies.glob("*") if self.copies.is_dir() else ():
                if path not in used:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise ServingError(f"A LoRA file cannot be copied to {self.copies}: {error}") from error
        return tuple(kept)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
