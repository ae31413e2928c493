"""Runs one case of api_cases.json against a running server whose GPU pipelines are served by the double."""

import asyncio
import hashlib
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.server.camera import NumberedCamera
from tests.server.cases import Case
from tests.server.client import UNSET, Answer
from tests.server.double_process import DoubleProcess
from tests.server.expectations import (
    CaseError,
    check,
    check_answer,
    check_subset,
    check_types,
    differences,
    lookup,
)
from tests.server.peer import Peer

STATUS = "/api/v1/pipeline/status"

_LONGLIVE_FILES = (  # api.md 5.2; "all" is only asked of this pipeline
    "Wan2.1-T2V-1.3B/config.json",
    "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
    "Wan2.1-T2V-1.3B/google/umt5-xxl/tokenizer.json",
    "WanVideo_comfy/umt5-xxl-enc-fp8_e4m3fn.safetensors",
    "WanVideo_comfy/Wan2_1-VACE_module_1_3B_bf16.safetensors",
    "LongLive-1.3B/models/longlive_base.pt",
    "LongLive-1.3B/models/lora.pt",
)
_PLACEHOLDER = re.compile(r"\{(offer\.\w+|\w+)\}")
_OFFERS: dict[str, dict[str, Any]] = {
    "sendrecv": {},
    "recvonly": {"direction": "recvonly"},
    "sendonly": {"direction": "sendonly"},
    "datachannel_only": {"video": False},
    "video_audio": {"audio": True},
    "vp9_only": {},
}
_SETTLE_S = 0.4  # until a pause, or its end, has taken effect
_OBSERVE_S = 0.8  # several chunks of the double


def png_of(name: str) -> bytes:
    """A small image in a colour of its own, by which the double's records name it."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), tuple(hashlib.sha256(name.encode()).digest()[:3])).save(buffer, "PNG")
    return buffer.getvalue()


class CaseRunner:
    """The state of one running case: saved values, peers, what has to be undone afterwards."""

    def __init__(self, server: DoubleProcess) -> None:
        self._server = server
        self._client = server.client
        self._saved: dict[str, str] = {}
        self._peers: list[Peer] = []
        self._answered: Any = None  # body of the last successful offer
        self._sessions: set[str] = set()
        self._files: list[Path] = []

    async def run(self, case: Case) -> None:
        """Make the preconditions true, then take all steps. Raises CaseError."""
        try:
            for name, value in case.preconditions():
                await self._prepare(name, value)
            for number, step in enumerate(case.steps):
                try:
                    await (self._channel_step(step) if case.kind == "datachannel" else self._http_step(step))
                except AssertionError as error:
                    raise CaseError(f"{case.id}, step {number}: {error}") from None
        finally:
            await self._clean_up()

    # Preconditions

    async def _prepare(self, name: str, value: Any) -> None:
        match name:
            case "pipeline":
                await self._set_pipeline(value)
            case "slow_load":
                self._server.set_faults(load_delay_s=value)
            case "fail_load":
                self._server.set_faults(load_error=value)
            case "assets" | "loras" | "file" | "models":
                for path, size in self._wanted_files(name, value):
                    self._create_file(path, size)
            case "session":
                await self._open_session(value)
            case "env" | "max_sessions" | "turn" | "hub":
                pass  # the server was started for this case
            case _:
                raise CaseError(f"the precondition {name!r} cannot be made true yet")

    async def _set_pipeline(self, wanted: Any) -> None:
        if wanted == "not_loaded":
            answer = await self._client.call("POST", "/api/v1/pipeline/unload")
            check(answer.status == 200, f"unload failed: {answer.status} {answer.text}")
            await self._wait_status("not_loaded", 15)
            return
        body = wanted if isinstance(wanted, dict) else {"id": wanted}
        load = {"pipeline_id": body["id"], "load_params": body.get("load_params")}
        answer = await self._client.call("POST", "/api/v1/pipeline/load", json_body=load)
        check(answer.status == 200, f"load failed: {answer.status} {answer.text}")
        await self._wait_status("loaded", 15)

    def _wanted_files(self, name: str, value: Any) -> list[tuple[Path, int]]:
        """Paths and sizes in bytes of the files that a precondition names."""
        match name:
            case "file":
                return [((self._server.assets / value).resolve(), 64)]
            case "models":
                names = _LONGLIVE_FILES if value == "all" else ()
                return [(self._server.home / "models" / path, 1) for path in names]
            case _:
                directory = self._server.assets if name == "assets" else self._server.loras
                return [(directory / path, size) for path, size in value.items()]

    def _create_file(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = png_of(path.name) if path.suffix == ".png" else b""  # which has 67 bytes at least
        path.write_bytes(content.ljust(size, b"\0"))
        self._files.append(path)

    async def _open_session(self, wanted: dict[str, Any]) -> None:
        source = NumberedCamera(128, 96, 20) if "source" in wanted else None
        peer = Peer(self._client, direction=wanted["direction"], source=source)
        self._peers.append(peer)
        parameters = wanted.get("initialParameters")
        await peer.connect(parameters)
        self._sessions.add(str(peer.session_id))
        if source or (parameters or {}).get("input_mode") != "video":
            await peer.wait_frames(1)  # a session that is open shows something, unless it waits for input

    async def _clean_up(self) -> None:
        self._server.reset_faults()
        for session in self._sessions:
            await self._client.call("DELETE", f"/api/v1/webrtc/offer/{session}")
        for peer in self._peers:
            await peer.close()
        for path in (*self._files, *self._uploaded()):
            path.unlink(missing_ok=True)

    def _uploaded(self) -> list[Path]:
        directories = (self._server.assets, self._server.loras)
        return [path for directory in directories for path in directory.rglob("*") if path.is_file()]

    # HTTP steps

    async def _http_step(self, step: dict[str, Any]) -> None:
        if "connect" in step:
            await self._complete_offer()
        elif "frames" in step:
            await self._complete_offer()
            await self._check_frames(step["frames"], len(self._peers[-1].frames))
        else:
            if "wait" in step:
                await self._wait(step["wait"])
            answer = await self._request(step)
            check_answer(step["expect"], answer)
            for name, path in step.get("save", {}).items():
                self._saved[name] = lookup(answer.json(), path)[0][1]

    async def _request(self, step: dict[str, Any]) -> Answer:
        answer = await self._client.call(
            step["method"],
            _fill(step["path"], self._saved),
            headers=step.get("headers"),
            json_body=await self._filled_body(step["json"]) if "json" in step else UNSET,
            body=_raw_body(step),
        )
        if step["path"] == "/api/v1/webrtc/offer" and answer.status == 200:
            self._answered = answer.json()
            self._sessions.add(self._answered["sessionId"])
        return answer

    async def _filled_body(self, body: Any) -> Any:
        values = dict(self._saved)
        for kind in set(re.findall(r"\{offer\.(\w+)\}", json.dumps(body))):
            peer = Peer(self._client, **_OFFERS[kind])
            self._peers.append(peer)
            sdp = await peer.offer_sdp()
            if kind == "vp9_only":
                sdp = sdp.replace("VP8", "VP9").replace("H264", "AV1")
            values[f"offer.{kind}"] = sdp
        return _fill(body, values)

    async def _complete_offer(self) -> None:
        peer = self._peers[-1]
        if peer.session_id is None:
            await peer.accept(self._answered)
            await peer.connected()

    async def _wait(self, wanted: dict[str, Any]) -> None:
        timeout_s = wanted["timeout_s"]
        if "status" in wanted:
            await self._wait_status(wanted["status"], timeout_s)
            return
        pipeline = wanted.get("progress") or wanted["download_end"]

        def reached(body: Any) -> bool:
            progress = body.get("progress")
            return progress is not None and ("progress" in wanted or not progress["is_downloading"])

        await self._poll(f"/api/v1/models/status?pipeline_id={pipeline}", reached, timeout_s)

    async def _wait_status(self, wanted: str, timeout_s: float) -> None:
        await self._poll(STATUS, lambda body: body["status"] == wanted, timeout_s)

    async def _poll(self, path: str, reached: Callable[[Any], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached(body := (await self._client.call("GET", path)).json()):
            check(time.monotonic() < deadline, f"{path} still answers {body} after {timeout_s} s")
            await asyncio.sleep(0.05)

    # Data-channel steps

    async def _channel_step(self, step: dict[str, Any]) -> None:
        peer, expect = self._peers[-1], step["expect"]
        messages, frames = len(peer.messages), len(peer.frames)
        # Without a message the stream's first chunk counts; with one, those that begin after it.
        first_chunk = 0 if step.get("send", "") is None else len(await self._chunks())
        await self._act(step, expect)
        within_s = expect.get("within_s", 3.0)
        if "message" in expect:
            message = await peer.wait_message(expect["message"]["type"], within_s, since=messages)
            check_subset(expect["message"], message, "message")
            check_types(expect.get("types", {}), message)
        if "no_message" in expect:
            await asyncio.sleep(1.0)
            unwanted = [m for m in peer.messages[messages:] if m["type"] == expect["no_message"]]
            check(not unwanted, f"unexpected message {unwanted}")
        if "generation" in expect:
            await self._check_generation(expect["generation"])
            frames = len(peer.frames)
        if "frames" in expect:
            await self._check_frames(expect["frames"], frames)
        if "state" in expect:
            await self._check_state(expect["state"], first_chunk, within_s)

    async def _act(self, step: dict[str, Any], expect: dict[str, Any]) -> None:
        peer = self._peers[-1]
        for message in step.get("burst", [step["send"]] if step.get("send") is not None else []):
            peer.send(message)
        if "http" in step:
            answer = await self._request(step["http"])
            check_answer({"status": expect["status"]}, answer)
        if step.get("backend") == "out_of_memory":
            self._server.set_faults(chunk_errors=1, fatal=True, chunk_error="CUDA out of memory")

    async def _check_generation(self, wanted: bool) -> None:
        await asyncio.sleep(_SETTLE_S)
        before = len(await self._chunks())
        await asyncio.sleep(_OBSERVE_S)
        made = len(await self._chunks()) - before
        check((made > 0) == wanted, f"{made} chunks were made in {_OBSERVE_S} s")

    async def _check_frames(self, expect: dict[str, Any], since: int) -> None:
        peer = self._peers[-1]
        deadline = time.monotonic() + expect["within_s"]
        enough = expect.get("min", float("inf"))
        while len(peer.frames) - since < enough and time.monotonic() < deadline:  # noqa: ASYNC110 (a peer has no event)
            await asyncio.sleep(0.05)
        frames = peer.frames[since:]
        check(len(frames) >= expect.get("min", 0), f"{len(frames)} frames within {expect['within_s']} s")
        check(
            len(frames) <= expect.get("max", len(frames)),
            f"{len(frames)} frames, more than {expect.get('max')}",
        )
        sizes = {(f.width, f.height) for f in frames}
        for key, index in (("width", 0), ("height", 1)):
            check(key not in expect or {s[index] for s in sizes} == {expect[key]}, f"frames of size {sizes}")

    async def _check_state(self, expect: dict[str, Any], first_chunk: int, within_s: float) -> None:
        parameters = {k: v for k, v in expect.items() if not k.startswith("_")}
        received = {k[1:]: v for k, v in expect.items() if k in ("_blend", "_active_prompts")}
        deadline = time.monotonic() + within_s
        while problems := [
            *await self._parameter_problems(parameters),
            *await self._last_chunk_problems(received),
        ]:
            check(time.monotonic() < deadline, "; ".join(problems))
            await asyncio.sleep(0.05)
        for key, values in expect.get("_chunk", {}).items():
            await self._check_chunks(key, values, first_chunk, within_s)

    async def _parameter_problems(self, expect: dict[str, Any]) -> list[str]:
        if not expect:
            return []
        answer = await self._client.call("GET", "/api/v1/session/parameters")
        return differences(
            expect, dict.fromkeys(expect) | answer.json()["parameters"]
        )  # an absent key is null

    async def _last_chunk_problems(self, expect: dict[str, Any]) -> list[str]:
        return differences(expect, (await self._chunks())[-1]) if expect else []

    async def _check_chunks(self, key: str, values: list[Any], first_chunk: int, within_s: float) -> None:
        """Compare the chunks from the one on that the message changed; all of them when it changed none."""
        deadline = time.monotonic() + within_s
        while True:
            chunks = (await self._chunks())[first_chunk:]
            changed = next((i for i, c in enumerate(chunks) if c["changes"] != {"init_cache": False}), None)
            if changed is not None and len(chunks) >= changed + len(values):
                seen = chunks[changed : changed + len(values)]
                break
            if time.monotonic() > deadline:
                check(
                    changed is None and len(chunks) >= len(values),
                    f"only {len(chunks)} chunks in {within_s} s",
                )
                seen, values = chunks, [values[0]] * len(chunks)
                break
            await asyncio.sleep(0.05)
        check_subset(values, [chunk[key] for chunk in seen], f"{key} of the next chunks")

    async def _chunks(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self._server.chunks)


def _raw_body(step: dict[str, Any]) -> bytes | None:
    if "body_text" in step:
        return str(step["body_text"]).encode()
    match step.get("body_bytes"):
        case None:
            return None
        case {"prefix_hex": prefix, "size": size}:
            return bytes.fromhex(prefix).ljust(size, b"\0")
        case size:
            return bytes(size)


def _fill(value: Any, values: dict[str, str]) -> Any:
    """`value` with every `{name}` in its strings replaced, where the name is known."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), value)
    if isinstance(value, list):
        return [_fill(v, values) for v in value]
    if isinstance(value, dict):
        return {k: _fill(v, values) for k, v in value.items()}
    return value
