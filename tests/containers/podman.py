"""Podman and buildah with a storage of their own, for images and containers of one test run."""

import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_PROGRAMS = ("podman", "buildah", "runc", "iptables")
_BRIDGE = Path("/sys/class/net/cni-podman0")  # of Podman's default network; Podman leaves it behind
_NETWORK = (Path("/usr/lib/cni/bridge"), Path("/usr/lib/podman/netavark"))  # either of them


class Podman:
    """The programs, with all their files below `directory`."""

    def __init__(self, directory: Path) -> None:
        """Fails the test when a program is missing, or the user is not root."""
        missing = [name for name in _PROGRAMS if shutil.which(name) is None]
        if missing or not any(path.exists() for path in _NETWORK):
            pytest.fail(f"Not installed: {', '.join(missing) or _NETWORK}. Run: scripts/setup.sh containers")
        if os.geteuid() != 0:
            pytest.fail(
                "Building and running images needs root. Leave these tests out with: -m 'not containers'"
            )
        self.directory = directory
        directory.mkdir(parents=True)
        self._found_bridge = _BRIDGE.exists()
        open_files = min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        (directory / "containers.conf").write_text(
            # Without systemd and its control groups; and no limits above those that we have ourselves.
            f'[containers]\ndefault_ulimits = ["nofile={open_files}:{open_files}", "nproc=32768:32768"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nruntime = "runc"\nevents_logger = "file"\n'
        )
        (directory / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n'
        )
        self._environment = os.environ | {
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "TMPDIR": str(directory),
        }

    def __call__(self, *arguments: str | Path, check: bool = True, within_s: float = 120) -> str:
        """What `podman ARGUMENTS` prints, errors included. AssertionError when it fails."""
        return self._run(["podman", *arguments], check, within_s)

    def import_image(self, root: Path, name: str, path: str) -> None:
        """Make an image of a root file system. path: its PATH."""
        archive = root.with_suffix(".tar")
        subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
        self("import", "--quiet", "--change", f"ENV PATH={path}", archive, name)
        archive.unlink()

    def build(self, target: str, name: str, *options: str) -> None:
        """Build a target of the product's Dockerfile, without asking any registry."""
        root = Path(__file__).resolve().parents[2]
        # Docker's format, because the other one has no health checks.
        command = ["buildah", "bud", "--format=docker", "--pull-never", "--isolation=chroot"]
        command += ["--network=host", f"--target={target}", f"--tag={name}", *options]
        self._run([*command, f"--file={root / 'docker/Dockerfile'}", str(root)], True, 400)

    def close(self) -> None:
        """Remove everything, containers that run included."""
        self("rm", "--force", "--all", "--time=0", check=False)
        self("rmi", "--force", "--all", check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
        if _BRIDGE.exists() and not self._found_bridge:
            subprocess.run(["ip", "link", "delete", _BRIDGE.name], check=True)

    def _run(self, command: Sequence[str | Path], check: bool, within_s: float) -> str:
        done = subprocess.run(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=within_s,
        )
        assert not check or done.returncode == 0, (
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        )
        return done.stdout


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started once; it may have ended."""

    podman: Podman
    name: str
    image: str

    @property
    def log(self) -> str:
        return self.podman("logs", self.name, check=False)

    @property
    def runs(self) -> bool:
        return self.podman("inspect", "--format={{.State.Running}}", self.name).strip() == "true"

    def is_healthy(self) -> bool:
        """Run the health check once: Podman leaves that to systemd, which is not everywhere."""
        (image,) = json.loads(self.podman("inspect", "--type=image", self.image))
        kind, *command = image["Healthcheck"]["Test"]
        assert kind == "CMD", kind
        return self.podman("exec", self.name, *command, check=False) == ""

    def run(self, *command: str) -> str:
        """What a command in it prints."""
        return self.podman("exec", self.name, *command)

    def wait(self, within_s: float) -> int:
        """Wait for its end; the exit code."""
        # Not `podman wait`: that also waits for its monitor to be reaped, which not every init process does.
        deadline = time.monotonic() + within_s
        while self.runs:
            assert time.monotonic() < deadline, f"runs after {within_s} s:\n{self.log[-6000:]}"
            time.sleep(0.2)
        return int(self.podman("inspect", "--format={{.State.ExitCode}}", self.name))

    def kill(self) -> None:
        self.podman("kill", "--signal=KILL", self.name)

    def stop(self, within_s: int = 20) -> None:
        self.podman("stop", f"--time={within_s}", self.name)

    def start(self) -> None:
        self.podman("start", self.name)

    def remove(self) -> None:
        self.podman("rm", "--force", "--time=0", self.name, check=False)


def options_of(service: Mapping[str, Any], volumes: Mapping[str, Path]) -> list[str]:
    """`podman run`'s options for a service of a compose file, but for the GPU and the memory lock limit.

    volumes: directories in place of the named volumes.
    """
    options = [f"--cap-drop={name}" for name in service.get("cap_drop", ())]
    options += [f"--cap-add={name}" for name in service.get("cap_add", ())]
    options += [f"--security-opt={text.removesuffix(':true')}" for text in service.get("security_opt", ())]
    options += [f"--env={name}={value}" for name, value in service.get("environment", {}).items()]
    options += [f"--publish={port}" for port in service.get("ports", ())]
    if "shm_size" in service:
        options.append(f"--shm-size={service['shm_size']}")
    if service.get("network_mode") == "host":
        options.append("--network=host")
    if "entrypoint" in service:
        options.append(f"--entrypoint={json.dumps(service['entrypoint'])}")
    for volume in service.get("volumes", ()):
        source, _, target = volume.partition(":")
        options.append(f"--volume={volumes[source]}:{target}")
    return options
