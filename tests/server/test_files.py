"""Assets, LoRA files and model files of the whole gateway in a process of its own."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from gateway.files.models.artifacts import ARTIFACTS
from tests.directory_scan import scan
from tests.hostile_names import HOSTILE
from tests.hub_double import HubDouble
from tests.server.case_runner import png_of
from tests.server.double_process import DoubleProcess
from tests.server.gateway_calls import load
from tests.server.peer import Peer, until

SIZE = {"height": 96, "width": 128}
SECRET = "nobody may read this"
HEADER = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER + b"x"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoubleProcess]:
    process = DoubleProcess(tmp_path_factory.mktemp("files") / "home")
    yield process
    process.stop()


def surroundings(server: DoubleProcess) -> dict[str, str]:
    """Everything in the server's home and beside it, but for its logs."""
    found = scan(server.home.parent)
    return {path: what for path, what in found.items() if not path.endswith(".log")}


def picture() -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(output, "PNG")
    return output.getvalue()


async def test_hostile_uploads_and_installs_write_nothing(server: DoubleProcess) -> None:
    outside = server.home.parent / "outside"
    outside.mkdir()
    for directory, suffix in ((server.assets, "png"), (server.loras, "safetensors")):
        (directory / "link").symlink_to(outside)
        (directory / f"linked.{suffix}").symlink_to(outside / f"evil.{suffix}")
        (directory / "loop").symlink_to("loop")
        (directory / f"existing.{suffix}").write_bytes(picture())
        (directory / f"directory.{suffix}").mkdir()
    before = surroundings(server)

    names = [name.replace("{outside}", quote(str(outside), safe="")) for name in HOSTILE]
    uploads = [
        (await server.client.call("POST", f"/api/v1/assets?filename={name}", body=picture())).status
        for name in names
    ]
    url = "https://huggingface.co/a/b/resolve/main/x.safetensors"
    installs = [
        (await server.client.call("POST", "/api/v1/loras", json_body={"url": url, "filename": name})).status
        for name in (name.replace("png", "safetensors") for name in names if "%" not in name)
    ]

    loras = [
        (await server.client.call("POST", f"/api/v1/lora/upload?filename={name}", body=SAFETENSORS)).status
        for name in (name.replace("png", "safetensors") for name in names)
    ]

    assert set(uploads) == {400}
    assert set(installs) == {400}
    assert len(installs) > 10
    assert set(loras) == {400}
    assert surroundings(server) == before


async def test_hostile_paths_read_nothing(server: DoubleProcess) -> None:
    home = server.home
    (home / "secret.png").write_text(SECRET)
    (home / "assets-x").mkdir()
    (home / "assets-x" / "a.png").write_text(SECRET)
    paths = ["..%2Fsecret.png", "../secret.png", "%2e%2e/secret.png", "a/../../secret.png", "..%5Csecret.png"]
    paths += ["..%2Fassets-x%2Fa.png", quote(str(home / "secret.png"), safe=""), f"{home}/secret.png"]
    paths += ["....//secret.png", "%252e%252e%252fsecret.png", "..%00/secret.png", "..;/secret.png"]

    answers = [await server.client.call("GET", f"/api/v1/assets/{path}") for path in paths]

    assert {answer.status for answer in answers} <= {403, 404}
    assert all(SECRET not in answer.text and "detail" in answer.json() for answer in answers)


async def test_uploaded_picture_reaches_the_pipeline_by_the_path_of_the_answer(server: DoubleProcess) -> None:
    name = quote("Mein Bild 狐.png")
    uploaded = await server.client.call("POST", f"/api/v1/assets?filename=refs/{name}", body=png_of(name))
    await load(server.client, "longlive", SIZE)

    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "a", "weight": 1.0}]})
        await peer.wait_frames(1)
        peer.send({"vace_ref_images": [uploaded.json()["path"]]})

        def given() -> list[list[str]]:
            return [c["vace_ref_images"] for c in server.chunks() if c["vace_ref_images"]]

        await until(lambda: asyncio.to_thread(given), 30, "a chunk with the reference image")
        assert given() == [["refs/Mein Bild 狐.png"]]


async def test_damaged_picture_is_told_and_the_stream_goes_on_without_it(server: DoubleProcess) -> None:
    whole = picture()
    damaged = server.assets / "damaged.png"
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(whole[: len(whole) // 2])  # its header is whole
    await load(server.client, "longlive", SIZE)

    async with Peer(server.client) as peer:
        await peer.connect({"prompts": [{"text": "a", "weight": 1.0}]})
        await peer.wait_frames(1)
        peer.send({"vace_ref_images": ["damaged.png"]})
        message = await peer.wait_message("parameter_error", 30.0)
        shown = len(server.chunks())
        await until(lambda: asyncio.to_thread(lambda: len(server.chunks()) > shown), 30.0, "more chunks")

        assert [(e["loc"], e["type"]) for e in message["errors"]] == [(["vace_ref_images"], "undecodable")]
        assert "'damaged.png' is left out: it cannot be decoded" in message["errors"][0]["msg"]
        assert [c["vace_ref_images"] for c in server.chunks() if c["vace_ref_images"]] == []
    damaged.unlink()


async def test_loaded_lora_is_kept_until_it_is_unloaded(server: DoubleProcess) -> None:
    path = server.loras / "sub" / "style.safetensors"
    uploaded = await server.client.call(
        "POST", "/api/v1/lora/upload?filename=sub/style.safetensors", body=SAFETENSORS
    )
    await load(server.client, "longlive", SIZE | {"loras": [{"path": "sub/style.safetensors"}]})

    refused = await server.client.call("DELETE", "/api/v1/loras/style")
    kept = path.exists()
    await load(server.client, "longlive", SIZE)
    deleted = await server.client.call("DELETE", "/api/v1/loras/style")

    assert uploaded.json()["file"]["path"] == str(path)
    assert (refused.status, kept) == (409, True)
    assert (deleted.status, path.exists()) == (200, False)


async def test_server_that_ends_during_a_download_goes_on_with_it_the_next_time(tmp_path: Path) -> None:
    async with HubDouble() as hub:
        hub.add(ARTIFACTS["longlive"])
        hub.repositories["Wan-AI/Wan2.1-T2V-1.3B"]["Wan2.1_VAE.pth"] = bytes(100_000)  # 50 s at this pace
        hub.slow = 0.05
        first = await asyncio.to_thread(DoubleProcess, tmp_path / "home", {"HF_ENDPOINT": hub.url})
        body = {"pipeline_id": "longlive"}
        await first.client.call("POST", "/api/v1/models/download", json_body=body)
        part = tmp_path / "home" / "models" / "Wan2.1-T2V-1.3B" / "Wan2.1_VAE.pth.incomplete"
        await until(lambda: part.exists() and part.stat().st_size, 30, "the first bytes of a file")
        await asyncio.to_thread(first.stop, within_s=5.0)
        stored = part.stat().st_size

        hub.slow = 0.0
        hub.requests.clear()
        second = await asyncio.to_thread(DoubleProcess, tmp_path / "home", {"HF_ENDPOINT": hub.url})
        before = await second.client.call("GET", "/api/v1/models/status?pipeline_id=longlive")
        await second.client.call("POST", "/api/v1/models/download", json_body=body)

        async def complete() -> bool:
            status = await second.client.call("GET", "/api/v1/models/status?pipeline_id=longlive")
            return bool(status.json()["downloaded"])

        await until(complete, 30, "the files are there")
        await asyncio.to_thread(second.stop)

        ranges = [r.headers.get("range") for r in hub.file_requests() if r.path.endswith("VAE.pth")]
        assert before.json()["downloaded"] is False
        assert ranges == [f"bytes={stored}-"]
