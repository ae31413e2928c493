"""The chunk protocol between gateway and a pipeline's model, spoken with a real Triton server."""

import asyncio
import contextlib
import errno
import json
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.utils import InferenceServerException

from gateway.embedded.leftovers import SHARED_MEMORY
from gateway.embedded.server import EmbeddedTriton
from gateway.triton.session import TritonSession
from gateway.triton.shared_frames import SharedFrames
from streaming.triton.protocol import ErrorKind, decode_error
from tests.server.scripted_pipeline import CHUNKS, LABEL, RESET
from tests.server.triton_fixtures import (
    DOUBLER,
    PASSTHROUGH,
    SCRIPTED,
    ModelClient,
    Response,
    model_processes,
    running_triton,
    wait_for_log,
    write_test_models,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTriton]:
    async with running_triton(write_test_models(tmp_path_factory.mktemp("models"))) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def scripted(triton: EmbeddedTriton) -> AsyncIterator[ModelClient]:
    """The scripted pipeline, loaded without parameters."""
    async with ModelClient(triton, SCRIPTED) as client:
        await client.load()
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def passthrough(triton: EmbeddedTriton) -> AsyncIterator[ModelClient]:
    async with ModelClient(triton, PASSTHROUGH) as client:
        await client.load()
        yield client


def pixel(responses: list[Response], channel: int = LABEL) -> int:
    """What the first picture says."""
    return int(responses[0].frames[0, 0, 0, channel])


@pytest.mark.parametrize("shape", [(1, 512, 512, 3), (4, 33, 57, 3), (12, 320, 576, 3), (1, 1, 1, 3)])
async def test_passthrough_returns_the_same_bytes(passthrough: ModelClient, shape: tuple[int, ...]) -> None:
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    await passthrough.start(1)

    responses = await passthrough.generate(1, video)

    assert len(responses) == 1
    assert responses[0].final
    assert np.array_equal(responses[0].frames, video)


async def test_passthrough_keeps_every_one_of_256_levels(passthrough: ModelClient) -> None:
    video = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    await passthrough.start(1)

    responses = await passthrough.generate(1, video)

    assert np.array_equal(responses[0].frames, video)


async def test_passthrough_without_pictures_fails_and_goes_on(passthrough: ModelClient) -> None:
    video = np.full((1, 4, 4, 3), 7, np.uint8)
    await passthrough.start(1)

    with pytest.raises(InferenceServerException, match="Input cannot be None for PassthroughPipeline"):
        await passthrough.generate(1)
    responses = await passthrough.generate(1, video)

    assert np.array_equal(responses[0].frames, video)


async def test_model_process_of_passthrough_does_not_hold_torch(
    triton: EmbeddedTriton, passthrough: ModelClient
) -> None:
    await passthrough.start(1)

    processes = [p for p in model_processes(triton.pid) if any(PASSTHROUGH in part for part in p.cmdline())]

    assert len(processes) == 1
    libraries = {Path(region.path).name for region in processes[0].memory_maps()}
    assert any("numpy" in name or "multiarray" in name for name in libraries)
    assert not any("torch" in name for name in libraries)


async def test_groups_arrive_one_by_one_and_only_the_last_is_final(scripted: ModelClient) -> None:
    await scripted.start(1, groups=3)

    responses = await scripted.generate(1)

    assert [r.final for r in responses] == [False, False, True]
    assert [r.meta["last"] for r in responses] == [False, False, True]
    assert [r.meta["chunk"] for r in responses] == [0, 0, 0]
    assert [len(r.frames) for r in responses] == [1, 1, 1]


async def test_first_group_is_there_while_the_second_is_being_made(scripted: ModelClient) -> None:
    await scripted.start(1, groups=2, delay_s=0.5)
    stream = scripted.stream(1, scripted.command(1))

    await anext(stream)
    second = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait([second], timeout=0.1)

    assert not done
    assert (await second).final


async def test_chunk_whose_end_is_unknown_is_closed_by_an_empty_final_response(scripted: ModelClient) -> None:
    await scripted.start(1, groups=2, mark_last=False)

    responses = await scripted.generate(1)

    assert [len(r.frames) for r in responses] == [1, 1, 0]
    assert [r.final for r in responses] == [False, False, True]
    assert responses[-1].meta == {"chunk": 0, "last": True}


async def test_chunks_of_a_session_are_numbered(scripted: ModelClient) -> None:
    await scripted.start(1)

    numbers = [(await scripted.generate(1))[0].meta["chunk"] for _ in range(3)]

    assert numbers == [0, 1, 2]


async def test_first_request_may_start_and_generate_at_once(scripted: ModelClient) -> None:
    responses = await scripted.send(1, {"op": "generate", "parameters": {"label": 9}}, flags="s")

    assert pixel(responses) == 9
    assert pixel(await scripted.generate(1), CHUNKS) == 1


async def test_a_chunk_has_its_own_parameters_and_none_of_the_one_before(scripted: ModelClient) -> None:
    await scripted.start(1)

    first = await scripted.generate(1, label=2, groups=2, init_cache=True)
    second = await scripted.generate(1)

    assert (pixel(first), pixel(first, RESET), len(first)) == (2, 1, 2)
    assert (pixel(second), pixel(second, RESET), len(second)) == (0, 0, 1)


async def test_two_interleaved_sessions_do_not_see_each_other(scripted: ModelClient) -> None:
    await scripted.start(1, label=10, groups=20, delay_s=0.005)
    await scripted.start(2, label=20, groups=20, delay_s=0.005)

    async def stream(sequence: int, change: int) -> list[int]:
        first = [r.frames[0, 0, 0, LABEL] for r in await scripted.generate(sequence)]
        second = [r.frames[0, 0, 0, LABEL] for r in await scripted.generate(sequence, label=change)]
        return [int(label) for label in first + second]

    labels = await asyncio.gather(stream(1, 11), stream(2, 21))

    assert labels == [[10] * 20 + [11] * 20, [20] * 20 + [21] * 20]


async def test_more_sessions_than_model_instances_are_all_served(scripted: ModelClient) -> None:
    for sequence in range(1, 17):
        await scripted.start(sequence, label=sequence)

    chunks = await asyncio.gather(*(scripted.generate(sequence) for sequence in range(1, 17)))

    assert [pixel(chunk) for chunk in chunks] == list(range(1, 17))


async def test_start_of_a_running_session_replaces_its_state(scripted: ModelClient) -> None:
    await scripted.start(1, label=1)
    await scripted.generate(1)

    await scripted.start(1, label=2)
    responses = await scripted.generate(1)

    assert (pixel(responses), pixel(responses, CHUNKS)) == (2, 0)
    assert responses[0].meta["chunk"] == 0


async def test_ended_session_is_gone_until_started_again(scripted: ModelClient) -> None:
    await scripted.start(1)
    await scripted.generate(1)

    responses = await scripted.send(1, {"op": "stop"}, flags="e")

    assert responses[-1].final
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        await scripted.generate(1)
    await scripted.start(1, label=5)
    assert pixel(await scripted.generate(1)) == 5


async def test_stop_without_the_end_flag_forgets_the_state(scripted: ModelClient) -> None:
    await scripted.start(1)

    await scripted.send(1, {"op": "stop"})

    with pytest.raises(InferenceServerException, match="Start it again"):
        await scripted.generate(1)


async def test_session_without_the_start_flag_is_refused(scripted: ModelClient) -> None:
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        await scripted.generate(99)


async def test_silent_session_is_forgotten_by_triton_and_by_the_model(
    scripted: ModelClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="triton")
    await scripted.load(idle_s=0.5)
    await scripted.start(1)

    await asyncio.sleep(1.5)
    await scripted.start(2)  # the model looks for silent sessions whenever it is called

    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        await scripted.generate(1)
    await wait_for_log(caplog, "Session 1 was silent for too long")
    assert "Session 2" not in caplog.text


async def test_keep_alive_saves_a_paused_session(scripted: ModelClient) -> None:
    await scripted.load(idle_s=1.0)
    await scripted.start(1, label=6)

    for _ in range(5):
        await asyncio.sleep(0.4)
        await scripted.send(1, {"op": "keep_alive"})

    assert pixel(await scripted.generate(1)) == 6


async def test_warm_up_is_a_sequence_of_its_own(
    scripted: ModelClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="triton")

    responses = await scripted.send(77, {"op": "warmup"}, flags="se")

    assert responses[-1].final
    assert "warmup" in responses[-1].meta["timings_ms"]
    await wait_for_log(caplog, "the scripted pipeline is warm")


@pytest.mark.parametrize("wait_for_a_picture", [True, False])
async def test_cancelled_chunk_leaves_no_trace_and_the_session_goes_on(
    scripted: ModelClient, wait_for_a_picture: bool
) -> None:
    await scripted.start(1, label=1)
    await scripted.generate(1)
    changes = {"label": 2, "groups": 1000, "delay_s": 0.05}
    stream = scripted.stream(1, {"op": "generate", "parameters": changes})
    reading = asyncio.ensure_future(anext(stream))
    if wait_for_a_picture:
        assert (await reading).frames[0, 0, 0, LABEL] == 2
    else:
        await asyncio.sleep(0.02)
        reading.cancel()
        await asyncio.wait([reading])

    await stream.aclose()
    responses = await asyncio.wait_for(scripted.generate(1), 30)  # 1000 pictures would take 50 s

    assert pixel(responses) == 1
    assert responses[0].meta["chunk"] == 1
    assert pixel(responses, CHUNKS) == 1


async def test_cancelled_session_does_not_disturb_another(scripted: ModelClient) -> None:
    await scripted.start(1, groups=1000, delay_s=0.02)
    await scripted.start(2, label=8)
    stream = scripted.stream(1, scripted.command(1))
    await anext(stream)
    other = asyncio.ensure_future(scripted.generate(2))

    await stream.aclose()

    assert pixel(await asyncio.wait_for(other, 30)) == 8


@pytest.mark.parametrize("error_at", [0, 2])
@pytest.mark.parametrize(
    ("error", "text", "fatal"),
    [
        ("told", "The scripted chunk failed. Try the next one.", False),
        ("fatal", "The scripted stream is over. Start another one.", True),
        ("bug", "The pipeline failed on this chunk (ValueError: scripted bug). The next one may work", False),
        ("memory", "The pipeline ran out of memory", True),
    ],
)
async def test_failed_chunk_is_one_sentence_and_the_session_goes_on(
    scripted: ModelClient, error: str, text: str, fatal: bool, error_at: int
) -> None:
    await scripted.start(1, label=1)

    changes = {"label": 2, "groups": 4, "error": error, "error_at": error_at}
    stream = scripted.stream(1, {"op": "generate", "parameters": changes})
    received = [await anext(stream) for _ in range(error_at)]
    with pytest.raises(InferenceServerException) as caught:
        await anext(stream)
    responses = await scripted.generate(1)

    message, kind = decode_error(caught.value.message())
    assert message.startswith(text)
    assert "\n" not in message
    assert (kind is ErrorKind.FATAL) is fatal
    assert not any(response.final for response in received)
    assert (pixel(responses), len(responses)) == (1, 1)
    assert responses[0].meta["chunk"] == 0


async def test_unexpected_exception_is_logged_with_its_traceback(
    scripted: ModelClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="triton")
    await scripted.start(1)

    with pytest.raises(InferenceServerException):
        await scripted.generate(1, error="bug", error_at=0)

    line = await wait_for_log(caplog, "ValueError: scripted bug")
    assert "Traceback" in line
    assert "scripted_pipeline.py" in line


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "not list"),
        (b"null", "not NoneType"),
        (b"{}", "'op' must be one of generate, give_up"),
        (b'{"op": "fly"}', "'fly'"),
        (b'{"op": ["generate"]}', "'op' must be one of"),
        (b'{"op": "generate", "parameters": []}', None),
        (b'{"op": "generate", "parameters": [1]}', "'parameters' must be a JSON object, not list"),
    ],
)
async def test_malformed_command_is_refused_in_words_and_the_session_goes_on(
    scripted: ModelClient, command: bytes, text: str | None
) -> None:
    await scripted.start(1, label=3)

    context = pytest.raises(InferenceServerException, match=text) if text else contextlib.nullcontext()
    with context:
        await scripted.send(1, command)

    assert pixel(await scripted.generate(1)) == 3


async def test_load_parameters_reach_the_pipeline_and_change_with_the_next_load(
    scripted: ModelClient,
) -> None:
    await scripted.unload()

    with pytest.raises(InferenceServerException) as caught:
        await scripted.load({"refuse": "Height 7 is too small. Choose at least 64."})

    assert "WanstreamError: Height 7 is too small. Choose at least 64." in caught.value.message()
    assert await scripted.state() == "UNAVAILABLE"
    await scripted.load()
    await scripted.start(1, label=2)
    assert pixel(await scripted.generate(1)) == 2


async def test_load_that_fails_leaves_the_loaded_pipeline_running(scripted: ModelClient) -> None:
    await scripted.start(1, label=2)

    with pytest.raises(InferenceServerException, match="No"):
        await scripted.load({"refuse": "No."})

    assert pixel(await scripted.generate(1)) == 2


async def test_process_that_dies_while_loading_fails_the_load(scripted: ModelClient) -> None:
    await scripted.unload()

    with pytest.raises(InferenceServerException, match="is not healthy"):
        await scripted.load({"crash": "1"})

    assert await scripted.api.is_server_ready()


async def test_missing_dependency_is_named_when_loading(
    triton: EmbeddedTriton, scripted: ModelClient
) -> None:
    with pytest.raises(InferenceServerException, match=f"Model '{DOUBLER}' is not loaded. Load it first."):
        await scripted.load({"needs": DOUBLER})

    async with ModelClient(triton, DOUBLER) as doubler:
        await doubler.api.load_model(DOUBLER)
        await scripted.load({"needs": DOUBLER})
        assert await scripted.state() == "READY"
        await doubler.unload()


async def test_dependency_lost_under_a_session_fails_chunks_until_it_is_back(
    triton: EmbeddedTriton, scripted: ModelClient
) -> None:
    async with ModelClient(triton, DOUBLER) as doubler:
        await doubler.api.load_model(DOUBLER)
        await scripted.start(1, label=4, call=DOUBLER)
        before = await scripted.generate(1)

        await doubler.unload()
        with pytest.raises(InferenceServerException, match=f"Model '{DOUBLER}' failed: .* is not ready"):
            await scripted.generate(1)
        await doubler.api.load_model(DOUBLER)
        after = await scripted.generate(1)
        await doubler.unload()

    assert (pixel(before), pixel(after)) == (4, 4)
    assert (before[0].meta["chunk"], after[0].meta["chunk"]) == (0, 1)


async def test_unload_closes_the_pipeline_also_with_open_sessions(
    scripted: ModelClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="triton")
    await scripted.start(1)
    await scripted.generate(1)

    await scripted.unload()

    assert await scripted.state() == "UNAVAILABLE"
    await wait_for_log(caplog, "the scripted pipeline is closed")


async def test_model_can_be_unloaded_after_failed_and_cancelled_chunks(scripted: ModelClient) -> None:
    for sequence in range(1, 6):
        await scripted.start(sequence)
        with pytest.raises(InferenceServerException):
            await scripted.generate(sequence, error="bug", error_at=0)
        stream = scripted.stream(
            sequence, {"op": "generate", "parameters": {"groups": 1000, "delay_s": 0.02}}
        )
        await anext(stream)
        await stream.aclose()

    await scripted.unload()

    assert await scripted.state() == "UNAVAILABLE"


async def test_input_may_come_through_shared_memory_where_answers_come_in_parts(
    triton: EmbeddedTriton, scripted: ModelClient
) -> None:
    shared = SharedFrames(scripted.api, triton.shared_memory_prefix, both_ways=False)
    session = TritonSession(scripted.api, SCRIPTED, lambda text: None, shared)
    made = []
    for level, size in ((3, 8), (4, 64), (5, 8)):
        video = np.full((2, size, size, 3), level, np.uint8)
        made.append([part.frames async for part in session.generate({"groups": 3}, video)])
    during = list(SHARED_MEMORY.glob(f"{triton.shared_memory_prefix}frames*"))
    sizes = [file.stat().st_size for file in during]
    await session.close()

    assert [[int(frames[0, 0, 0, LABEL]) for frames in chunk] for chunk in made] == [
        [3] * 3,
        [4] * 3,
        [5] * 3,
    ]
    assert sizes == [2 * 64 * 64 * 3]
    assert not during[0].exists()


async def test_without_room_in_shared_memory_pictures_travel_in_messages(
    triton: EmbeddedTriton,
    scripted: ModelClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    shared = SharedFrames(scripted.api, triton.shared_memory_prefix, both_ways=False)
    session = TritonSession(scripted.api, SCRIPTED, lambda text: None, shared)
    video = np.full((2, 8, 8, 3), 3, np.uint8)
    made = [part.frames for _ in range(2) async for part in session.generate({}, video)]
    await session.close()

    assert [int(frames[0, 0, 0, LABEL]) for frames in made] == [3, 3]
    told = [record.getMessage() for record in caplog.records if "No space left" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("Pictures travel in messages, which takes longer")
    assert list(SHARED_MEMORY.glob(f"{triton.shared_memory_prefix}frames*")) == []


async def test_session_can_be_continued_from_another_connection(
    triton: EmbeddedTriton, scripted: ModelClient
) -> None:
    await scripted.start(1)
    await scripted.generate(1)

    async with ModelClient(triton, SCRIPTED) as other:
        responses = await other.generate(1)

    assert pixel(responses, CHUNKS) == 1


async def test_command_with_unicode_text_arrives_unchanged(scripted: ModelClient) -> None:
    command: dict[str, Any] = {"op": "generate", "parameters": {"label": 1, "prompts": ["Füchse 🦊"]}}
    await scripted.start(1)

    responses = await scripted.send(1, json.dumps(command, ensure_ascii=False).encode())

    assert pixel(responses) == 1
