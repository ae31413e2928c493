"""Files of servers whose gateway is gone are removed, all others stay."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.embedded import leftovers
from gateway.embedded.leftovers import SHARED_MEMORY

NAMESPACE = os.stat("/proc/self/ns/pid").st_ino


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def region() -> Iterator[list[Path]]:
    """Files to be removed after the test, whatever happens."""
    created: list[Path] = []
    yield created
    for path in created:
        path.unlink(missing_ok=True)


def touch(created: list[Path], name: str) -> Path:
    path = SHARED_MEMORY / name
    path.touch()
    created.append(path)
    return path


def test_shared_memory_of_a_dead_gateway_is_removed(region: list[Path], dead_pid: int) -> None:
    path = touch(region, f"wanstream_{NAMESPACE}_{dead_pid}_1_test")

    assert leftovers.sweep() >= 1
    assert not path.exists()


def test_temporary_directory_of_a_dead_gateway_is_removed(dead_pid: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix=f"wanstream_{NAMESPACE}_{dead_pid}_1_"))
    (directory / "python").mkdir()

    leftovers.sweep()

    assert not directory.exists()


def test_a_link_that_somebody_planted_is_removed_and_not_what_it_points_to(
    region: list[Path], dead_pid: int, tmp_path: Path
) -> None:
    (tmp_path / "kept").touch()
    link = Path(tempfile.gettempdir()) / f"wanstream_{NAMESPACE}_{dead_pid}_1_x"
    region.append(link)
    link.symlink_to(tmp_path)

    leftovers.sweep()

    assert not link.is_symlink()
    assert (tmp_path / "kept").exists()


def test_what_cannot_be_removed_does_not_keep_the_others(
    region: list[Path], dead_pid: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"wanstream_{NAMESPACE}_{dead_pid}_1"
    stubborn, path = touch(region, f"{name}_a"), touch(region, f"{name}_b")
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self == stubborn:
            raise OSError(errno.EBUSY, "Device or resource busy")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    leftovers.sweep()

    monkeypatch.undo()
    assert not path.exists()
    assert f"{stubborn}: Device or resource busy" in caplog.text


def test_shared_memory_of_a_living_gateway_stays(region: list[Path]) -> None:
    path = touch(region, f"wanstream_{NAMESPACE}_{os.getppid()}_1_test")

    leftovers.sweep()

    assert path.exists()


def test_shared_memory_of_a_server_of_this_process_stays_until_released(region: list[Path]) -> None:
    prefix = leftovers.claim_prefix()
    path = touch(region, f"{prefix}test")

    leftovers.sweep()
    kept = path.exists()
    leftovers.release_prefix(prefix)

    assert kept
    assert not path.exists()


def test_shared_memory_of_an_earlier_process_with_this_id_is_removed(region: list[Path]) -> None:
    path = touch(region, f"wanstream_{NAMESPACE}_{os.getpid()}_999999_test")

    leftovers.sweep()

    assert not path.exists()


@pytest.mark.parametrize("name", ["wanstream_{other}_{pid}_1_test", "wanstream_notes", "triton_{pid}_1_test"])
def test_files_that_cannot_be_judged_or_are_not_ours_stay(
    region: list[Path], dead_pid: int, name: str
) -> None:
    path = touch(region, name.format(other=NAMESPACE + 1, pid=dead_pid))

    leftovers.sweep()

    assert path.exists()


def test_prefixes_are_unique_and_releasing_one_spares_the_other(region: list[Path]) -> None:
    first, second = leftovers.claim_prefix(), leftovers.claim_prefix()
    path = touch(region, f"{second}test")

    leftovers.release_prefix(first)

    assert first != second
    assert path.exists()
    leftovers.release_prefix(second)
