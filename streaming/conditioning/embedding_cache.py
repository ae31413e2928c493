"""Prompt embeddings that were computed before, in memory and on disk: a repeated prompt costs nothing."""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

logger = logging.getLogger(__name__)

_ABANDONED_S = 3600.0  # a temporary file that is older was left by a process that died

Embedding = npt.NDArray[Any]  # [L, C], rows after the prompt's end are zero


class _Entry(NamedTuple):
    """An embedding without its zero rows: most of its L rows are padding, and a row of UMT5-XXL is 16 kB."""

    rows: Embedding
    length: int  # L

    def padded(self) -> Embedding:
        embedding = np.zeros((self.length, *self.rows.shape[1:]), dtype=self.rows.dtype)
        embedding[: len(self.rows)] = self.rows
        return embedding


class EmbeddingCache:
    """Embeddings by text encoder and cleaned prompt; the least recently used ones go first.

    encoder     identifies what else decides about an embedding: encoder weights, tokenizer, prompt length
    directory   keeps embeddings over restarts; processes may share it. None: memory only
    *_bytes     what embeddings may take, in memory and on disk

    The directory holds no prompt texts. A file that cannot be read, removed or written costs a warning: a
    cache never stops a stream.
    """

    def __init__(
        self,
        encoder: str,
        directory: Path | None = None,
        memory_bytes: int = 64 << 20,
        disk_bytes: int = 1 << 30,
    ) -> None:
        self._encoder = encoder
        self._directory = directory
        self._memory: OrderedDict[str, _Entry] = OrderedDict()
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes

    def get(self, prompt: str) -> Embedding | None:
        """The embedding of a cleaned prompt, [L, C], the caller's own; None if it is not known."""
        key = self._key(prompt)
        entry = self._memory.get(key) or self._read(key)
        if entry is None:
            return None
        self._remember(key, entry)
        return entry.padded()

    def put(self, prompt: str, embedding: Embedding) -> None:
        """Keep the embedding, [L, C], of a cleaned prompt; not one that an overflow has spoilt."""
        if not np.isfinite(embedding).all():
            return
        key = self._key(prompt)
        used = np.flatnonzero(embedding.any(axis=1))
        entry = _Entry(embedding[: used[-1] + 1 if len(used) else 0].copy(), len(embedding))
        self._remember(key, entry)
        if self._directory is not None:
            self._write(self._directory, key, entry)

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(f"{self._encoder}\0{prompt}".encode()).hexdigest()

    def _remember(self, key: str, entry: _Entry) -> None:
        self._memory[key] = entry
        self._memory.move_to_end(key)
        while sum(kept.rows.nbytes for kept in self._memory.values()) > self._memory_bytes:
            self._memory.popitem(last=False)

    def _read(self, key: str) -> _Entry | None:
        if self._directory is None:
            return None
        path = self._directory / f"{key}.safetensors"
        try:
            with safe_open(path, framework="numpy") as file:
                rows: Embedding = file.get_tensor("rows")
                metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("sha256") != _checksum(rows):
                raise ValueError("its checksum does not match")
            entry = _Entry(rows, int(metadata["length"]))
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("Discarded the cached prompt embedding %s: %s", path, error)
            _remove(path)
            return None
        with contextlib.suppress(OSError):  # the directory may be read-only
            os.utime(path)  # used now
        return entry

    def _write(self, directory: Path, key: str, entry: _Entry) -> None:
        metadata = {"length": str(entry.length), "sha256": _checksum(entry.rows)}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            _write_atomically(directory / f"{key}.safetensors", save({"rows": entry.rows}, metadata))
            self._tidy(directory)
        except OSError as error:
            logger.warning("Cannot keep prompt embeddings in %s: %s", directory, error)

    def _tidy(self, directory: Path) -> None:
        """Remove what was used longest ago beyond the limit, and what dead processes left."""
        newest_first = sorted(_files(directory, ".safetensors"), key=lambda file: -file[1].st_mtime)
        taken = 0
        for path, status in newest_first:
            taken += status.st_size
            if taken > self._disk_bytes:
                _remove(path)
        for path, status in _files(directory, ".tmp"):
            if status.st_mtime < time.time() - _ABANDONED_S:
                _remove(path)


def _files(directory: Path, suffix: str) -> list[tuple[Path, os.stat_result]]:
    """Those that are there; another process may remove some meanwhile."""
    found = []
    for path in directory.glob(f"*{suffix}"):
        with contextlib.suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return found


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("Cannot remove %s: %s", path, error)


def _checksum(rows: Embedding) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def _write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old file or the whole new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
