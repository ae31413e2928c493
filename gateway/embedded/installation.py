"""Find the Triton server of the `nvidia-pytriton` wheel and check that it can run here.

The wheel's parts are used directly, `pytriton` itself is never imported (it brings its own server, threads
and telemetry). Everything that Triton would only report by a load that hangs, or by pictures that arrive
black, is checked before the server starts.
"""

import asyncio
import importlib.metadata
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.embedded.plain_paths import PlainPaths, is_plain
from gateway.waiting import within
from streaming.errors import WanstreamError

_PYTHON_VERSIONS = ((3, 10), (3, 11), (3, 12))
_OTHER_SERVER = "or use a Triton server of your own: --triton-url HOST:PORT"
_STUB_ANSWER = "Expected 9 arguments"  # what the stub says when it starts well, but without arguments
_STUB_TIMEOUT_S = 30.0


class EmbeddedTritonError(WanstreamError):
    """The embedded Triton server cannot run here, or died; the text names the remedy."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python whose packages the models import.

    version: (major, minor). library_directories: where its shared library may lie, in order of preference.
    home: directory of the Python that a virtual environment was made from. search_path: where packages are.
    """

    executable: Path
    version: tuple[int, int]
    numpy_version: str
    library_directories: tuple[Path, ...]
    home: Path
    search_path: tuple[Path, ...]

    @classmethod
    def current(cls) -> "Interpreter":
        """The Python that runs this program."""
        base = Path(sys.base_prefix)
        real = Path(os.path.realpath(sys.executable))
        directories = [
            Path(sysconfig.get_config_var("LIBDIR") or base / "lib"),
            base / "lib",
            real.parent.parent / "lib",
            Path("/usr/lib", sysconfig.get_config_var("MULTIARCH") or ""),
            Path("/usr/local/lib"),
            Path("/usr/lib64"),
        ]
        return cls(
            executable=Path(sys.executable),
            version=sys.version_info[:2],
            numpy_version=importlib.metadata.version("numpy"),
            library_directories=tuple(dict.fromkeys(directories)),
            home=real.parent,
            search_path=tuple(Path(entry).absolute() for entry in sys.path if entry),
        )

    @property
    def dotted(self) -> str:
        return f"{self.version[0]}.{self.version[1]}"

    def plain_programs(self, paths: PlainPaths) -> Path:
        """The directory of its `python3`, by a plain path, and with it all that its packages are found by.

        Its own, unless a name on the way is not plain: the interpreter in a model's process would read the
        `.pth` files of an environment as ASCII, and end. Then a new virtual environment in `paths`, whose
        only `.pth` file says where everything is.
        """
        if all(map(is_plain, (self.executable, self.home, *self.search_path))):
            return self.executable.parent
        root = paths.directory / "environment"
        packages = root / "lib" / f"python{self.dotted}" / "site-packages"
        if not root.exists():
            packages.mkdir(parents=True)
            (root / "bin").mkdir()
            (root / "bin" / "python3").symlink_to(self.executable)
            home = paths.of(self.home.parent) / self.home.name
            (root / "pyvenv.cfg").write_text(f"home = {home}\n", encoding="ascii")
            entries = "".join(f"{paths.of(entry)}\n" for entry in self.search_path)
            (packages / "wanstream.pth").write_text(entries, encoding="ascii")
        return root / "bin"

    def find_library_directory(self) -> Path:
        """Directory of `libpythonX.Y.so.1.0`, which the process of every Python model needs.

        Raises EmbeddedTritonError when there is none.
        """
        library = f"libpython{self.dotted}.so.1.0"
        for directory in self.library_directories:
            if (directory / library).is_file():
                return directory
        searched = ", ".join(map(str, self.library_directories))
        raise EmbeddedTritonError(
            f"The embedded Triton server needs the shared library of Python {self.dotted}, {library}, and "
            f"it is in none of these directories: {searched}. Install it (Debian, Ubuntu: apt install "
            f"libpython{self.dotted}), use a Python that has it (from uv, or from pyenv with "
            f"PYTHON_CONFIGURE_OPTS=--enable-shared), {_OTHER_SERVER}."
        )


@dataclass(frozen=True, slots=True)
class TritonInstallation:
    """Files of one installed server and the Python beside it."""

    server: Path
    backend: Path  # directory of libtriton_python.so
    stub: Path
    libraries: Path
    interpreter: Interpreter

    @classmethod
    def find(cls, interpreter: Interpreter | None = None, package: str = "pytriton") -> "TritonInstallation":
        """The server of the wheel in this environment.

        interpreter: the Python for the models; None: the one that runs this program. package: where the wheel
        puts its files. Raises EmbeddedTritonError when a part is missing or of the wrong version.
        """
        python = interpreter or Interpreter.current()
        _check_platform(python)
        _check_numpy(python.numpy_version)
        spec = importlib.util.find_spec(package)  # finds, does not import
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedTritonError(
                f"The embedded Triton server is not installed: there is no package '{package}' in "
                f"{sys.prefix}. Run: pip install 'wanstream[embedded]', {_OTHER_SERVER}."
            )
        root = Path(spec.submodule_search_locations[0])
        found = cls(
            server=root / "tritonserver/bin/tritonserver",
            backend=root / "tritonserver/backends/python",
            stub=root / "tritonserver/python_backend_stubs" / python.dotted / "triton_python_backend_stub",
            libraries=root.parent / "nvidia_pytriton.libs",
            interpreter=python,
        )
        missing = [
            str(p) for p in (found.server, found.backend, found.stub, found.libraries) if not p.exists()
        ]
        if missing:
            raise EmbeddedTritonError(
                f"The embedded Triton server is incomplete, these files are missing: {', '.join(missing)}. "
                f"Run: pip install --force-reinstall 'wanstream[embedded]', {_OTHER_SERVER}."
            )
        return found

    def environment(self, inherited: Mapping[str, str], paths: PlainPaths) -> dict[str, str]:
        """Environment of the server and of its model processes, its own directories by plain paths.

        Raises EmbeddedTritonError when Python's shared library is missing.
        """
        env = dict(inherited)
        libraries = [paths.of(p) for p in (self.interpreter.find_library_directory(), self.libraries)]
        # The stub's interpreter takes its prefix, and so site-packages, from the first `python3` on PATH.
        env["PATH"] = _path_list([self.interpreter.plain_programs(paths)], env.get("PATH"))
        env["LD_LIBRARY_PATH"] = _path_list(libraries, env.get("LD_LIBRARY_PATH"))
        env.setdefault("OMP_NUM_THREADS", "1")  # several model processes share the cores
        return env

    async def check_stub(self) -> None:
        """Start the program that will run the models and see it answer.

        A library that it misses would otherwise show only as a load that never ends. Raises
        EmbeddedTritonError.
        """
        with PlainPaths("wanstream-check-") as paths:
            await self._check_stub(self.environment(os.environ, paths))

    async def _check_stub(self, env: Mapping[str, str]) -> None:
        process = await asyncio.create_subprocess_exec(
            self.stub, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            output, _ = await within(process.communicate(), _STUB_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            raise EmbeddedTritonError(
                f"Triton's Python stub {self.stub} did not answer within {_STUB_TIMEOUT_S:.0f} s. The "
                f"machine may be overloaded: try again, {_OTHER_SERVER}."
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = output.decode(errors="replace").strip()
        if _STUB_ANSWER not in text:
            raise EmbeddedTritonError(
                f"Triton's Python stub {self.stub} does not start (exit code {process.returncode}): {text} - "
                f"LD_LIBRARY_PATH was {env.get('LD_LIBRARY_PATH', '')}. Install the library that it names, "
                f"{_OTHER_SERVER}."
            )


def _path_list(first: Sequence[Path], rest: str | None) -> str:
    return os.pathsep.join([*map(str, first), *([rest] if rest else [])])


def _check_platform(python: Interpreter) -> None:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        raise EmbeddedTritonError(
            "The embedded Triton server runs on Linux x86-64 only, not on "
            f"{platform.system()} {platform.machine()}. Start Triton elsewhere and name it: "
            "--triton-url HOST:PORT."
        )
    if python.version not in _PYTHON_VERSIONS:
        raise EmbeddedTritonError(
            f"The embedded Triton server runs with Python 3.10, 3.11 or 3.12, not with {python.dotted}. "
            f"Create the environment with one of these, {_OTHER_SERVER}."
        )


def _check_numpy(version: str) -> None:
    if version.split(".")[:2] != ["1", "26"]:
        raise EmbeddedTritonError(
            f"The embedded Triton server needs numpy 1.26, and numpy {version} is installed; with numpy 2 "
            f"every picture would silently arrive black. Run: pip install 'numpy>=1.26,<2', {_OTHER_SERVER}."
        )


def main() -> None:
    """Exit with 0 when the embedded server can run here, else with the reason on standard error."""
    try:
        asyncio.run(TritonInstallation.find().check_stub())
    except EmbeddedTritonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
