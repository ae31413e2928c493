"""Prompt embeddings are found again, in memory and on disk, and damage costs only a recomputation."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.conditioning.embedding_cache import EmbeddingCache

LENGTH, DIM = 8, 3


def embedding(rows: int, seed: int = 0, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[np.float32]:
    """[LENGTH, DIM], zero after the first `rows`."""
    values = np.random.default_rng(seed).normal(size=(LENGTH, DIM)).astype(dtype)
    values[rows:] = 0
    return values


@given(rows=st.integers(0, LENGTH), prompt=st.text(), dtype=st.sampled_from([np.float16, np.float32]))
def test_an_embedding_comes_back_as_it_was_put(rows: int, prompt: str, dtype: npt.DTypeLike) -> None:
    cache, value = EmbeddingCache("umt5"), embedding(rows, dtype=dtype)

    cache.put(prompt, value)

    np.testing.assert_array_equal(cache.get(prompt), value, strict=True)


def test_unknown_prompts_and_other_encoders_have_none(tmp_path: Path) -> None:
    cache = EmbeddingCache("umt5", tmp_path)
    cache.put("a panda", embedding(4))

    assert cache.get("a zebra") is None
    assert EmbeddingCache("umt5-fp8", tmp_path).get("a panda") is None


def test_changing_what_was_put_or_got_does_not_change_the_cache() -> None:
    cache, value = EmbeddingCache("umt5"), embedding(4)
    cache.put("a panda", value)

    value += 1
    first = cache.get("a panda")
    assert first is not None
    first += 1

    np.testing.assert_array_equal(cache.get("a panda"), embedding(4))


def test_the_least_recently_used_embedding_leaves_memory_first() -> None:
    cache = EmbeddingCache("umt5", memory_bytes=2 * 4 * DIM * 4)
    for prompt in ("one", "two"):
        cache.put(prompt, embedding(4))
    cache.get("one")

    cache.put("three", embedding(4))

    assert [cache.get(prompt) is None for prompt in ("one", "two", "three")] == [False, True, False]


@pytest.mark.parametrize("rows", [0, 4, LENGTH])
def test_embeddings_outlive_the_process(tmp_path: Path, rows: int) -> None:
    EmbeddingCache("umt5", tmp_path / "new" / "folder").put("a panda", embedding(rows))

    restarted = EmbeddingCache("umt5", tmp_path / "new" / "folder")

    np.testing.assert_array_equal(restarted.get("a panda"), embedding(rows), strict=True)


def test_files_take_no_more_than_the_given_bytes_and_the_last_used_ones_stay(tmp_path: Path) -> None:
    cache = EmbeddingCache("umt5", tmp_path)
    for i in range(5):
        cache.put(f"prompt {i}", embedding(4))
        os.utime(max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns), (i, i))
    size = next(tmp_path.iterdir()).stat().st_size

    EmbeddingCache("umt5", tmp_path, disk_bytes=3 * size).put("new", embedding(4))

    left = EmbeddingCache("umt5", tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size
    found = [
        left.get(prompt) is not None for prompt in ("prompt 0", "prompt 2", "prompt 3", "prompt 4", "new")
    ]
    assert found == [False, False, True, True, True]


def test_what_dead_processes_left_half_written_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "dead.tmp", tmp_path / "writing.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))

    EmbeddingCache("umt5", tmp_path).put("a panda", embedding(4))

    assert not old.exists()
    assert new.exists()


def test_an_embedding_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    cache, spoilt = EmbeddingCache("umt5", tmp_path), embedding(4)
    spoilt[0, 0] = np.nan

    cache.put("a panda", spoilt)

    assert cache.get("a panda") is None


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Not the superuser, who may write anywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_directory_that_may_only_be_read_stops_nothing(damaged: bool) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories cannot be entered by others
        directory = Path(name)
        EmbeddingCache("umt5", directory).put("a panda", embedding(4))
        (file,) = directory.iterdir()
        if damaged:
            file.write_bytes(b"damaged")
        file.chmod(0o444)
        directory.chmod(0o555)
        cache = EmbeddingCache("umt5", directory)

        with somebody_else():
            found = cache.get("a panda")
            cache.put("a zebra", embedding(3))

        assert (found is None) is damaged
        np.testing.assert_array_equal(cache.get("a zebra"), embedding(3))
        assert list(directory.iterdir()) == [file]
        directory.chmod(0o755)


def test_files_do_not_hold_the_prompt(tmp_path: Path) -> None:
    EmbeddingCache("umt5", tmp_path).put("a secret panda", embedding(4))

    (file,) = tmp_path.iterdir()

    assert b"panda" not in file.read_bytes()
    assert "panda" not in file.name


def cut(content: bytes) -> bytes:
    return content[:-5]


def flip_last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 0xFF])


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip_last_byte, empty])
def test_a_damaged_file_is_discarded_with_a_warning(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    EmbeddingCache("umt5", tmp_path).put("a panda", embedding(4))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))

    with caplog.at_level(logging.WARNING):
        found = EmbeddingCache("umt5", tmp_path).get("a panda")

    assert found is None
    assert list(tmp_path.iterdir()) == []
    assert "Discarded the cached prompt embedding" in caplog.text


def test_a_directory_that_cannot_be_written_costs_only_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    cache = EmbeddingCache("umt5", occupied)

    with caplog.at_level(logging.WARNING):
        cache.put("a panda", embedding(4))

    np.testing.assert_array_equal(cache.get("a panda"), embedding(4))
    assert "Cannot keep prompt embeddings" in caplog.text
