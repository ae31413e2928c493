"""A network address translator between this machine and a viewer: 1:1, with a firewall, as in clouds.

A namespace stands for the translator, another one for the viewer's network. Needs iproute2, iptables and the
rights of root, which everybody has in namespaces of their own.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# Names and addresses of this process: others may test beside it.
_PID = os.getpid()
_DEVICE, _INNER, _OUTER, _REMOTE = (f"{name}{_PID}" for name in ("nat", "in", "out", "view"))
_NET = f"10.{120 + _PID // 16384 % 50}.{_PID // 64 % 256}"
_BASE = _PID % 32 * 8
_OURS, _ROUTER, _PUBLIC, _VIEWER = (f"{_NET}.{_BASE + number}" for number in (1, 2, 5, 6))


class Nat:
    """The translator while it exists: what comes to `public` goes here, if the firewall lets it."""

    private, public = _OURS, _PUBLIC

    def __init__(self, router: int, viewer: int) -> None:
        self._router, self._viewer = router, viewer

    def at_viewer(self, *command: str) -> list[str]:
        """A command line that runs `command` where the viewer is."""
        return _inside(self._viewer, *command)

    def build(self, open_ports: range) -> None:
        """open_ports: UDP ports to which the viewer may send unasked."""
        _link(_DEVICE, f"{_OURS}/30", None, _INNER, f"{_ROUTER}/30", self._router)
        _link(_OUTER, f"{_PUBLIC}/30", self._router, _REMOTE, f"{_VIEWER}/30", self._viewer)
        _run("ip", "route", "add", f"{_NET}.{_BASE + 4}/30", "via", _ROUTER)
        rules = (
            f"-t nat -A PREROUTING -d {_PUBLIC} -j DNAT --to-destination {_OURS}",
            f"-t nat -A POSTROUTING -s {_OURS} -j SNAT --to-source {_PUBLIC}",
            "-P FORWARD DROP",
            "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
            f"-A FORWARD -s {_OURS} -j ACCEPT",
            "-A FORWARD -p tcp -j ACCEPT",
            f"-A FORWARD -p udp --dport {open_ports[0]}:{open_ports[-1]} -j ACCEPT",
        )
        _run(*_inside(self._router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"))
        for rule in rules:
            _run(*_inside(self._router, "iptables", "-w", *rule.split()))


@contextmanager
def nat(open_ports: range) -> Iterator[Nat]:
    """AssertionError says what is missing."""
    for program in ("ip", "iptables", "nsenter", "unshare"):
        assert shutil.which(program), f"{program} is missing: run scripts/setup.sh test"
    with ExitStack() as stack:
        found = Nat(stack.enter_context(_namespace()), stack.enter_context(_namespace()))
        stack.callback(subprocess.run, ["ip", "link", "del", _DEVICE], capture_output=True, check=False)
        found.build(open_ports)
        yield found


@contextmanager
def _namespace() -> Iterator[int]:
    """A network of its own; the id of a process in it."""
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline(), (
            "No network namespace can be made here. Allow it, or run the tests as root."
        )
        _run(*_inside(holder.pid, "ip", "link", "set", "lo", "up"))
        yield holder.pid
    finally:
        holder.terminate()  # its devices go with the namespace
        holder.wait()
        holder.stdout.close()


def _link(name: str, address: str, place: int | None, other: str, far: str, other_place: int) -> None:
    """Join two networks by a pair of devices. place: a process there; None: this one."""
    here = [] if place is None else _inside(place)
    there = _inside(other_place)
    _run(*here, "ip", "link", "add", name, "type", "veth", "peer", "name", other, "netns", str(other_place))
    for command, device, own in ((here, name, address), (there, other, far)):
        _run(*command, "ip", "addr", "add", own, "dev", device)
        _run(*command, "ip", "link", "set", device, "up")


def _inside(pid: int, *command: str) -> list[str]:
    return ["nsenter", "--target", str(pid), "--net", *command]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
