"""The end of a process that threads would hold up."""

import subprocess
import sys

_SCRIPT = """
import logging, threading, time
from gateway.server import _end_soon

logging.basicConfig(level=logging.INFO)
threading.Thread(target=time.sleep, args=(600,), name="slow-look-up").start()
_end_soon(3)
"""


def test_a_process_ends_with_its_exit_code_and_names_the_threads_that_it_leaves() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60)

    assert done.returncode == 3
    assert "slow-look-up" in done.stderr
