"""A network link of limited speed: a namespace for the viewer, joined to ours by a pair of devices.

Needs iproute2 and the rights of root (namespaces, devices), which everybody has in namespaces of their own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Names and addresses of this process: others may test beside it.
_PID = os.getpid()
_DEVICE, _REMOTE = f"link{_PID}", f"far{_PID}"
_NET = f"10.{200 + _PID // 16384 % 50}.{_PID // 64 % 256}"
_OURS, _THEIRS = f"{_NET}.{_PID % 64 * 4 + 1}", f"{_NET}.{_PID % 64 * 4 + 2}"
_QUEUE = ("burst", "32kbit", "latency", "200ms")


class NarrowLink:
    """The link while it exists. Only what goes to the viewer is limited."""

    address = _OURS  # of the server, as the viewer sees it

    def __init__(self, holder_pid: int) -> None:
        self._holder = str(holder_pid)

    def inside(self, *command: str) -> list[str]:
        """A command line that runs `command` where the viewer is."""
        return ["nsenter", "--target", self._holder, "--net", *command]

    def limit(self, bits_per_second: int) -> None:
        _run("tc", "qdisc", "replace", "dev", _DEVICE, "root", "tbf", "rate", f"{bits_per_second}", *_QUEUE)

    def lift(self) -> None:
        _run("tc", "qdisc", "del", "dev", _DEVICE, "root")


@contextmanager
def narrow_link() -> Iterator[NarrowLink]:
    """A link without a limit yet. AssertionError says what is missing."""
    for program in ("ip", "tc", "nsenter", "unshare"):
        assert shutil.which(program), f"{program} is missing: run scripts/setup.sh test"
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline(), (
            "No network namespace can be made here. Allow it, or run the tests as root."
        )
        link = NarrowLink(holder.pid)
        _run("ip", "link", "add", _DEVICE, "type", "veth", "peer", "name", _REMOTE, "netns", str(holder.pid))
        for command, device, address in (([], _DEVICE, _OURS), (link.inside(), _REMOTE, _THEIRS)):
            _run(*command, "ip", "addr", "add", f"{address}/30", "dev", device)
            _run(*command, "ip", "link", "set", device, "up")
        _run(*link.inside(), "ip", "link", "set", "lo", "up")
        yield link
    finally:
        holder.terminate()  # its devices, and so ours, go with the namespace
        holder.wait()
        holder.stdout.close()
        subprocess.run(["ip", "link", "del", _DEVICE], capture_output=True, check=False)


def run_where_we_are_root(test: Path) -> None:
    """Run the tests of a module as root of a user namespace. AssertionError shows what they printed."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    inside = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    with_loopback = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(
        [*inside, *with_loopback, *pytest], env=ours, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
