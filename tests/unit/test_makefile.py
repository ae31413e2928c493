"""What `make` runs, in a checkout whose name a shell could misread."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.containers.podman import Podman
from tests.odd_paths import ODD

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("venv", [".venv", f"{ODD}/venv"])
def test_make_sets_up_and_serves_from_any_directory(venv: str, tmp_path: Path) -> None:
    """`setup.sh` and the interpreter are noted, not run."""
    checkout = tmp_path / ODD / "wanstream"
    for name, shown in (("scripts/setup.sh", "setup $VENV"), (f"{venv}/bin/python", "python")):
        path = checkout / name
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "{shown} $*"\n')
        path.chmod(0o755)
    shutil.copy(ROOT / "Makefile", checkout)
    environment = os.environ | {"VENV": venv, "ARGS": "--port 9000", "JOBS": "5"}

    made = [
        subprocess.run(["make", "-s", target], cwd=checkout, env=environment, capture_output=True, text=True)
        for target in ("serve", "unit")
    ]

    assert [(m.stderr, m.stdout.splitlines()) for m in made] == [
        ("", [f"setup {venv} serve", "python -m gateway --port 9000"]),
        ("", [f"setup {venv} test", "python -m pytest -n 5 tests/unit tests/golden"]),
    ]


@pytest.mark.parametrize("name", ["two\nlines", "a:b"])
def test_setup_refuses_a_checkout_that_no_environment_can_be_in(name: str, tmp_path: Path) -> None:
    script = tmp_path / name / "scripts" / "setup.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", script)

    ended = subprocess.run([script, "serve"], capture_output=True, text=True)

    assert ended.returncode == 1
    assert "move it" in ended.stderr


def test_the_containers_tests_fail_where_a_tool_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(pytest.fail.Exception, match=r"podman, buildah, runc, .*scripts/setup.sh containers"):
        Podman(tmp_path / "podman")
