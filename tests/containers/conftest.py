"""The product's images, built once, and a directory of engines for them."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from streaming.engines.engine_set import EngineSet
from tests.containers.podman import Container, Podman, options_of
from tests.containers.services import compose
from tests.containers.stand_ins import python_image, triton_image
from tests.containers.wheels import borrowed_directories, wheelhouse

_PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER = 1000


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    podman = Podman(tmp_path_factory.mktemp("containers") / "podman")
    yield podman
    podman.close()


@pytest.fixture(scope="session")
def images(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Podman:
    """`localhost/gateway` and `localhost/triton`, from the Dockerfile as it is."""
    directory = tmp_path_factory.mktemp("images")
    release = compose()["triton"]["build"]["args"]["RELEASE"]
    python = python_image(directory / "python")
    triton = triton_image(python, directory / "triton")
    podman.import_image(python, "docker.io/library/python:3.12-slim-bookworm", _PATH)
    podman.import_image(
        triton, f"nvcr.io/nvidia/tritonserver:{release}-py3", f"/opt/tritonserver/bin:{_PATH}"
    )
    wheels = wheelhouse(directory / "wheels", ["wanstream[export]", "hatchling"])
    settings = directory / "pip.conf"
    settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    options = [f"--volume={wheels}:/wheels:ro", f"--volume={settings}:/etc/pip.conf:ro"]
    options.append("--build-arg=REVISION=0123abc")
    with ThreadPoolExecutor() as pool:
        builds = [
            pool.submit(podman.build, target, f"localhost/{target}", *options)
            for target in ("triton", "gateway")
        ]
    for build in builds:
        build.result()
    shutil.rmtree(directory)
    return podman


@pytest.fixture
def volume(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Iterator[Path]:
    """What the volume `data` has after a small LongLive was exported into it."""
    home = tmp_path / "data"
    shutil.copytree(exported_engines[0], home)
    for path in (home, *home.rglob("*")):
        os.chown(path, _USER, _USER)
    yield home
    shutil.rmtree(home, ignore_errors=True)


Start = Callable[..., Container]


@pytest.fixture
def start(images: Podman, volume: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """start(service, settings={}, options=[], command=None) runs a service of the compose file.

    settings: variables of the compose file. options: more of `podman run`. command: in place of its own.
    """
    started: list[Container] = []

    def run(
        name: str,
        settings: dict[str, Any] | None = None,
        options: list[str] | None = None,
        command: list[str] | None = None,
    ) -> Container:
        service = compose(settings or {})[name]
        image = service["image"].removeprefix("wanstream-").removesuffix(":latest")
        container = Container(images, f"{name}-{len(started)}", f"localhost/{image}")
        borrowed = [f"--volume={path}:{at}:ro" for path, at in borrowed_directories().items()]
        images(
            "run",
            "--detach",
            "--no-healthcheck",  # which Podman leaves to systemd; `is_healthy` runs it
            f"--name={container.name}",
            *options_of(service, {"data": volume}),
            *(borrowed if image == "triton" else ()),
            "--env=OMP_NUM_THREADS=1",
            *(options or ()),
            container.image,
            *(service.get("command", ()) if command is None else command),
        )
        started.append(container)
        return container

    yield run
    if request.session.testsfailed:
        for container in started:
            print(f"--- {container.name}\n{container.log[-6000:]}")  # noqa: T201
    for container in reversed(started):
        container.remove()
