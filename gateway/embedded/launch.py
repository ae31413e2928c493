"""Run a program that must not outlive the process that started it (Linux only).

    python -I -S gateway/embedded/launch.py <pid of the parent> <program> <argument>...

Becomes the program (`execve`, so it keeps this process id) after asking the kernel to send it SIGTERM when
the parent dies. A program of its own because the alternative, code between fork and exec, is unsafe in a
process with threads such as gRPC's. The kernel watches the *thread* that started this process: start it from
a thread that lives as long as the parent, never from an executor.

Not SIGKILL: a model process whose server is killed in the middle of a request waits for ever, holding the
interpreter lock, and so never notices. After SIGTERM Triton waits for open sequences until its exit timeout,
then ends its model processes; all are gone after some 12 s.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main(arguments: list[str]) -> None:
    """Replace this process by `arguments[1:]`; exit quietly when the parent, `arguments[0]`, is gone."""
    parent, program = int(arguments[0]), arguments[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel was asked
        return
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
