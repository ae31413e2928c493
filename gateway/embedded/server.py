"""A Triton server as a child process of the gateway.

Linux only, Python models only (the wheel has no TensorRT and no ONNX Runtime backend): for development, tests
and the CPU demo. Production uses a Triton container and `--triton-url`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from gateway.embedded import leftovers
from gateway.embedded import log as triton_log
from gateway.embedded.installation import EmbeddedTritonError, TritonInstallation
from gateway.embedded.plain_paths import PlainPaths
from gateway.waiting import end, within

logger = logging.getLogger(__name__)

__all__ = ["EmbeddedTriton", "EmbeddedTritonError", "model_repository"]

_ADDRESS = "127.0.0.1"  # Triton has no authentication
_START_ATTEMPTS = 5  # somebody may take a port between our look and Triton's
_START_TIMEOUT_S = 30.0
_POLL_S = 0.02
_ANSWER_S = 1.0  # another program may listen on that port and say nothing
_EXIT_TIMEOUT_S = 10  # how long Triton itself waits for requests that nobody ends
_LAST_OUTPUT_S = 2.0  # for a process that a model left behind and that holds the log's pipe
_PORT_TAKEN = "already in use"


def model_repository() -> Path:
    """Directory of the pipelines' models: beside this package, in a source tree and in site-packages alike.

    Raises EmbeddedTritonError when it is not there.
    """
    path = Path(str(resources.files("gateway"))).parent / "model_repository"
    if not path.is_dir():
        raise EmbeddedTritonError(
            f"The model repository is missing: {path}. Run: pip install --force-reinstall wanstream."
        )
    return path


class EmbeddedTriton:
    """One embedded server; all methods belong to the event loop of the main thread.

    `start` and `stop` may alternate; each start gets new ports. After an exit that nobody asked for,
    everything is cleaned up and `on_exit(text)` is called; `start` may then be called again.
    """

    def __init__(
        self,
        repositories: Sequence[Path],
        *,
        on_exit: Callable[[str], None] | None = None,
        installation: TritonInstallation | None = None,
        find_ports: Callable[[int], list[int]] | None = None,
    ) -> None:
        """repositories: existing directories of models, no model name twice.

        installation: None: find it. find_ports(n): n free ports; None: ask the kernel.
        """
        self.repositories = tuple(path.absolute() for path in repositories)
        self.on_exit = on_exit
        self._installation = installation
        self._find_ports = find_ports or _free_ports
        self._process: asyncio.subprocess.Process | None = None
        self._grpc_port = self._http_port = 0
        self._prefix = ""
        self._paths: PlainPaths | None = None
        self._log: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False
        self._last_lines: deque[str] = deque(maxlen=200)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Process id of the server. Raises EmbeddedTritonError when it does not run."""
        return self._started().pid

    @property
    def grpc_url(self) -> str:
        """host:port. Raises EmbeddedTritonError when the server does not run."""
        self._started()
        return f"{_ADDRESS}:{self._grpc_port}"

    @property
    def shared_memory_prefix(self) -> str:
        """Start of the names in /dev/shm that are removed with this server; empty when it does not run."""
        return self._prefix

    def path_for_models(self, path: Path) -> Path:
        """By which name the server and its models open `path`, which is absolute.

        Raises EmbeddedTritonError when the server does not run.
        """
        self._started()
        assert self._paths is not None, "a server that runs has its directory"
        return self._paths.of(path)

    async def preflight(self) -> TritonInstallation:
        """Check that the server can run here. Raises EmbeddedTritonError with the remedy."""
        for path in self.repositories:
            if not path.is_dir():
                raise EmbeddedTritonError(f"There is no model repository {path}. Create the directory.")
        installation = self._installation or TritonInstallation.find()
        await installation.check_stub()
        return installation

    async def start(self) -> None:
        """Start the server and wait until it answers; no model is loaded.

        Raises EmbeddedTritonError; nothing is left behind then.
        """
        if self._process is not None:
            raise EmbeddedTritonError("The embedded Triton server runs already. Stop it first.")
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedTritonError(
                "The embedded Triton server must be started from the main thread: it would be killed when "
                "the thread that started it ends."
            )
        installation = await self.preflight()
        removed = leftovers.sweep()
        if removed:
            logger.info("Removed %d files of servers that no longer run", removed)
        try:
            for attempt in range(1, _START_ATTEMPTS + 1):
                await self._launch(installation)
                if await self._answers():
                    break
                await self._clean_up()
                if attempt == _START_ATTEMPTS or not self._port_was_taken():
                    raise EmbeddedTritonError(
                        f"The embedded Triton server did not start: {self._reason()} Its whole log is above."
                    )
                logger.info("A port was taken while Triton started; trying others")
        except BaseException:
            await self.stop(timeout_s=0)
            raise
        self._last_lines.clear()  # what was said while starting does not explain a later exit
        self._watch = asyncio.create_task(self._notice_exit(self._started()))
        logger.info("Embedded Triton runs as process %d, gRPC on %s", self.pid, self.grpc_url)

    def dead_processes(self) -> set[int]:
        """Ids of the server's model processes that are dead and that it has not noticed yet."""
        import psutil  # here: it comes with the embedded server

        try:
            children = psutil.Process(self.pid).children()
            return {child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE}
        except (psutil.Error, EmbeddedTritonError):
            return set()  # the server itself has ended, or one of them just now

    async def wait_exit(self) -> int:
        """Wait until the server has exited, for whatever reason; returns its exit code (-9: killed)."""
        return await self._started().wait()

    async def stop(self, timeout_s: float = _EXIT_TIMEOUT_S + 5) -> int | None:
        """Stop the server, by force after `timeout_s`; idempotent.

        Close streams and unload models before: the server waits for them. Returns its exit code: 0 when it
        ended in order, negative when it was killed, None when it did not run.
        """
        process = self._process
        self._stopping = True
        try:
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                try:
                    await within(process.wait(), timeout_s)
                except asyncio.TimeoutError:
                    if timeout_s:
                        logger.warning("Triton did not stop within %.1f s and is killed", timeout_s)
            await self._clean_up()
            return None if process is None else process.returncode
        finally:
            self._stopping = False

    async def _launch(self, installation: TritonInstallation) -> None:
        self._grpc_port, self._http_port = self._find_ports(2)
        self._prefix = leftovers.claim_prefix()
        self._paths = paths = PlainPaths(self._prefix)
        _link_backend(installation, paths.directory)
        for repository in self.repositories:
            paths.of(repository.parent)  # what lies beside its models can be reached, too
        self._last_lines.clear()
        output, child_output = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",  # the launcher needs nothing but the standard library, so it is quick
                str(resources.files("gateway") / "embedded" / "launch.py"),
                str(os.getpid()),
                *self._command(installation, paths),
                env=installation.environment(os.environ, paths),
                cwd=paths.directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=child_output,
                stderr=child_output,
                start_new_session=True,  # Ctrl-C is for the gateway, which stops Triton in order
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(child_output)
        # A pipe of our own: asyncio's would make wait() wait for the model processes too, which inherit it.
        self._log = asyncio.create_task(triton_log.forward(output, self._last_lines.append))

    def _command(self, installation: TritonInstallation, paths: PlainPaths) -> list[str]:
        return [
            str(installation.server),
            *(f"--model-repository={paths.of(path)}" for path in self.repositories),
            f"--backend-directory={paths.directory}",
            "--model-control-mode=explicit",
            f"--grpc-address={_ADDRESS}",
            f"--grpc-port={self._grpc_port}",
            f"--http-address={_ADDRESS}",
            f"--http-port={self._http_port}",
            "--allow-metrics=false",
            "--exit-on-error=false",
            "--strict-readiness=false",
            "--disable-auto-complete-config",  # otherwise every load starts a second model process
            f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
            "--pinned-memory-pool-byte-size=0",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            f"--backend-config=python,shm-default-byte-size={64 << 20}",
        ]

    async def _answers(self) -> bool:
        """Wait until the server is ready; False when it exited before."""
        process = self._started()
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        while not await _is_ready(self._http_port):
            if process.returncode is not None:
                return False
            if asyncio.get_running_loop().time() > deadline:
                raise EmbeddedTritonError(
                    f"The embedded Triton server did not answer within {_START_TIMEOUT_S:.0f} s: "
                    f"{self._reason()}"
                )
            await asyncio.sleep(_POLL_S)
        return process.returncode is None  # the answer may have come from another program on that port

    async def _notice_exit(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        if self._stopping:
            return
        self._watch = None
        text = f"The Triton server ended unexpectedly ({_describe_exit(code)})"
        try:
            await self._clean_up()
            text = f"{text}: {self._reason()}"
        except Exception:  # task boundary: whoever has to start it again must be told all the same
            logger.exception("What a Triton server left could not be removed")
        logger.error("%s", text)
        if self.on_exit is not None:
            self.on_exit(text)

    async def _clean_up(self) -> None:
        """Kill what is left of the server and its models, and remove its files."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        log, self._log = self._log, None
        if log is not None:
            await asyncio.wait({log}, timeout=_LAST_OUTPUT_S)
            await end(log)
        prefix, self._prefix = self._prefix, ""
        if prefix:
            leftovers.release_prefix(prefix)

    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise EmbeddedTritonError("The embedded Triton server does not run. Start it first.")
        return self._process

    def _port_was_taken(self) -> bool:
        return any(_PORT_TAKEN in line for line in self._last_lines)

    def _reason(self) -> str:
        """What the log says about the end of the server; a sentence."""
        lines = [triton_log.parse(line) for line in self._last_lines]
        errors = [line.text for line in lines if line.level >= logging.ERROR]
        return f"{errors[-1].rstrip('.')}." if errors else "its log names no error."


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind((_ADDRESS, 0))
        return [s.getsockname()[1] for s in sockets]


def _link_backend(installation: TritonInstallation, root: Path) -> None:
    """Make `root` a backend directory: the stub of this Python version beside the Python backend."""
    python = root / "python"
    python.mkdir()
    for source in (
        installation.backend / "libtriton_python.so",
        installation.backend / "triton_python_backend_utils.py",
        installation.stub,
    ):
        (python / source.name).symlink_to(source)


async def _is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(_ADDRESS, port)
    except OSError:
        return False
    try:
        writer.write(f"GET /v2/health/ready HTTP/1.0\r\nHost: {_ADDRESS}\r\n\r\n".encode())
        status = await within(reader.readline(), _ANSWER_S)
    except (OSError, asyncio.TimeoutError):
        return False
    finally:
        writer.close()
    return b" 200 " in status


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
