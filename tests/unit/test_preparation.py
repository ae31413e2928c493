"""From nothing to a backend's engines; scripts stand in for exports and builds, the hub is a double."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from gateway.errors import ApiError
from gateway.files.models.artifacts import ARTIFACTS
from gateway.files.models.hub import Hub
from gateway.files.models.models import Models
from gateway.pipelines.preparation import (
    Preparation,
    PreparationError,
    Preparations,
    State,
    Tools,
    Wish,
    faster_note,
    wish_of,
)
from streaming.checkpoints.files import VAE_FILES
from streaming.specs import LONGLIVE, SPECS
from tests.checkpoints import publish, write_released_layout
from tests.hub_double import HubDouble
from tests.server.processes import clean_environment

MADE = "print('[1/2] a'); print('[2/2] b'); print(\"Engine set 'the set' is complete: x\")"


@dataclass
class Place:
    """A hub, models, and tools whose commands are scripts that note their arguments."""

    hub: HubDouble
    directory: Path
    preparations: Preparations

    def script(self, name: str, body: str) -> tuple[str, ...]:
        path = self.directory / f"{name}.py"
        noting = f"open({str(self.directory / name)!r}, 'w').write(' '.join(sys.argv[1:]))"
        path.write_text(f"import os, sys, time\n{noting}\n{body}\n")
        return (sys.executable, "-u", str(path))

    def given(self, name: str) -> str:
        return (self.directory / name).read_text()

    def use(self, *, export: str = MADE, build: str = "") -> None:
        scripts = {"export": self.script("export", export), "build": self.script("build", build)}
        self.preparations.tools = replace(self.preparations.tools, **scripts)

    async def ended(self, preparation: Preparation) -> Preparation:
        await until(lambda: preparation.state is not State.RUNNING)
        return preparation


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not within a minute")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    engines = tmp_path / "engines"
    engines.mkdir()
    async with HubDouble() as hub:
        hub.add(ARTIFACTS[LONGLIVE.id])
        models = Models(tmp_path / "models", Hub(hub.url, None, ()), lambda spec: False)
        tools = Tools(tmp_path / "models", engines, on_gpu=False, embedded=True, has_tensorrt=True)
        found = Place(hub, tmp_path, Preparations(models, tools))
        found.use()
        yield found
        await found.preparations.close()
        await models.close()


def wish(place: Place, backend: str = "triton") -> Wish:
    return wish_of(LONGLIVE, place.preparations.tools, backend, (320, 576))  # type: ignore[arg-type]


async def test_download_export_and_build_follow_each_other(place: Place) -> None:
    preparation = await place.ended(place.preparations.start(wish(place)))

    assert (preparation.state, preparation.error) == (State.DONE, None)
    assert preparation.describe()["percentage"] == 100
    assert place.preparations.models.missing(LONGLIVE.id) == []
    assert "longlive --size 320x576 --vae-type wan --precision bf16 --wait" in place.given("export")
    assert place.given("build").startswith("the set --out ")


@pytest.mark.parametrize(("backend", "made"), [("pytorch", []), ("onnxruntime", ["export"])])
async def test_what_a_backend_does_not_need_is_not_made(place: Place, backend: str, made: list[str]) -> None:
    await place.ended(place.preparations.start(wish(place, backend)))

    assert [name for name in ("export", "build") if (place.directory / name).exists()] == made
    assert not made or "--precision fp32 --form cpu" in place.given("export")


async def test_one_that_failed_says_why_and_goes_on_where_it_stopped(place: Place) -> None:
    place.use(export="print('Error: no memory'); sys.exit(1)")
    failed = await place.ended(place.preparations.start(wish(place)))
    fetched = len(place.hub.file_requests())
    place.use()
    second = await place.ended(place.preparations.start(wish(place)))

    assert failed.describe()["error"] == "The export has failed: no memory"
    assert failed.describe()["step"] == "export"
    assert second.state is State.DONE
    assert len(place.hub.file_requests()) == fetched > 0


async def test_a_download_that_fails_is_told(place: Place) -> None:
    place.hub.refused[ARTIFACTS[LONGLIVE.id][0].repository_id()] = 403

    failed = await place.ended(place.preparations.start(wish(place)))

    assert failed.state is State.FAILED
    assert failed.step == "download"
    assert "403" in (failed.error or "") or "refuse" in (failed.error or "")


async def test_one_that_is_cancelled_leaves_no_process_and_can_be_begun_again(place: Place) -> None:
    pid = place.directory / "pid"
    waiting = f"open({str(pid)!r}, 'w').write(str(os.getpid())); print('[1/2] a'); time.sleep(600)"
    place.use(export=waiting)
    preparation = place.preparations.start(wish(place))
    await until(lambda: preparation.detail == "engine 1 of 2")
    half = preparation.describe()
    with pytest.raises(ApiError, match="being prepared already"):
        place.preparations.start(wish(place))

    cancelled = await place.preparations.cancel(LONGLIVE.id)
    place.use()
    again = await place.ended(place.preparations.start(wish(place)))

    assert cancelled
    assert preparation.state is State.CANCELLED
    assert not psutil.pid_exists(int(pid.read_text()))
    assert (half["step_number"], half["steps"], half["percentage"]) == (2, 3, 50.0)
    assert again.state is State.DONE
    assert not await place.preparations.cancel(LONGLIVE.id)


async def test_a_cancelled_download_is_no_running_one(place: Place) -> None:
    place.hub.slow = 0.2
    place.preparations.start(wish(place, "pytorch"))
    await until(lambda: len(place.hub.file_requests()) > 0)

    await place.preparations.cancel(LONGLIVE.id)

    status = await place.preparations.models.status(LONGLIVE.id)
    assert (status["downloaded"], status["progress"]) == (False, None)


@pytest.mark.parametrize(
    ("on_gpu", "embedded", "has_tensorrt", "best"),
    [
        (False, True, True, "onnxruntime"),
        (True, True, True, "pytorch"),
        (True, False, True, "triton"),
        (True, False, False, "pytorch"),
    ],
)
def test_the_best_backend_is_one_that_this_machine_can_run(
    tmp_path: Path, on_gpu: bool, embedded: bool, has_tensorrt: bool, best: str
) -> None:
    tools = Tools(tmp_path, tmp_path, on_gpu, embedded, has_tensorrt)

    assert tools.best()[0] == wish_of(LONGLIVE, tools, "auto").backend == best
    assert wish_of(LONGLIVE, tools, "auto").reason


def test_what_cannot_be_prepared_is_refused_with_a_way_out(tmp_path: Path) -> None:
    tools = Tools(tmp_path, tmp_path, on_gpu=False, embedded=True, has_tensorrt=False)
    refusals = {
        "TensorRT's builder": lambda: wish_of(LONGLIVE, tools, "triton"),
        "no size of longlive": lambda: wish_of(LONGLIVE, tools, "auto", (321, 576)),
        "no vae_type 'vq'": lambda: wish_of(LONGLIVE, tools, "auto", vae_type="vq"),
        "Autoencoders/taew2_1.pth is not in": lambda: wish_of(LONGLIVE, tools, "auto", vae_type="tae"),
        "has no weights": lambda: wish_of(SPECS["passthrough"], tools, "auto"),
    }
    for text, ask in refusals.items():
        with pytest.raises(PreparationError, match=text):
            ask()


def test_a_stream_in_a_slower_backend_is_told_that_a_faster_one_is_ready(tmp_path: Path) -> None:
    tools = Tools(tmp_path, tmp_path, on_gpu=False, embedded=True, has_tensorrt=False)
    ready = Preparation(wish_of(LONGLIVE, tools, "onnxruntime"), State.DONE)
    running = Preparation(ready.wish)

    assert "onnxruntime is ready now" in faster_note(ready, "pytorch")
    assert (
        faster_note(ready, "onnxruntime") == faster_note(running, "pytorch") == faster_note(ready, None) == ""
    )


async def prepare_here(home: Path, hub: HubDouble, *options: str, **env: str) -> tuple[int, str]:
    """Run `wanstream prepare longlive`; its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "prepare", LONGLIVE.id, *options),
        env=clean_environment(home, {"HF_ENDPOINT": hub.url} | env),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_command_brings_what_is_missing_and_shows_how_far_it_is(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_released_layout(models)  # so small that every machine has room; only the autoencoder is missing
    (models / VAE_FILES["wan"]).rename(tmp_path / "vae")
    async with HubDouble() as hub:
        publish(hub, models, LONGLIVE.id)
        vae = next(files for name, files in hub.repositories.items() if name.endswith("T2V-1.3B"))
        vae[Path(VAE_FILES["wan"]).name] = (tmp_path / "vae").read_bytes()
        code, output = await prepare_here(tmp_path, hub, "--backend", "pytorch", "--size", "64x80")

    assert code == 0, output
    assert "[1/1] download" in output
    assert output.endswith("longlive is ready for backend pytorch.\n")
    assert (models / VAE_FILES["wan"]).read_bytes() == (tmp_path / "vae").read_bytes()


async def test_the_command_refuses_what_has_no_room_before_it_asks_for_anything(tmp_path: Path) -> None:
    async with HubDouble() as hub:
        code, output = await prepare_here(tmp_path, hub, WANSTREAM_MEMORY_LIMIT_MB="100")
        asked = hub.requests

    assert code == 1
    assert "Nothing of this pipeline fits" in output
    assert asked == []
