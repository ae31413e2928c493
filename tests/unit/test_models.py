"""Model files: status and downloads from a hub on this machine."""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gateway.config import Config
from gateway.files.models import cli
from gateway.files.models.artifacts import ARTIFACTS, MIRROR
from gateway.files.models.hub import Hub
from gateway.files.models.models import OWNERS, DownloadError, Models, Progress
from gateway.routes.models import models_blueprint
from gateway.serving import checkpoints
from gateway.serving.room import Room
from streaming.specs import SPECS, PipelineSpec
from tests.hub_double import HubDouble, Storage
from tests.local_http import Reply
from tests.serve_app import make_app, serving
from tests.server.client import Answer, HttpClient
from tests.server.double import DoubleServing
from tests.server.processes import clean_environment

ID = "longlive"
URL = "/api/v1/models"
MODEL = "models/longlive_base.pt"


class Place:
    """A hub, a models directory, and a running server that knows both."""

    def __init__(self, client: HttpClient, models: Models, directory: Path, hub: HubDouble) -> None:
        self.client = client
        self.models = models
        self.directory = directory
        self.hub = hub

    async def status(self, pipeline_id: str = ID) -> dict[str, Any]:
        answer = await self.client.call("GET", f"{URL}/status?pipeline_id={pipeline_id}")
        assert answer.status == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    async def start(self, pipeline_id: str = ID) -> Answer:
        return await self.client.call("POST", f"{URL}/download", json_body={"pipeline_id": pipeline_id})

    async def ended(self, pipeline_id: str = ID) -> dict[str, Any]:
        """The status once no download runs."""
        for _ in range(600):
            status = await self.status(pipeline_id)
            if status["progress"] is None or not status["progress"]["is_downloading"]:
                return status
            await asyncio.sleep(0.05)
        raise AssertionError(f"still downloading after 30 s: {status}")

    def stored(self) -> dict[str, bytes]:
        """Content of everything below the models directory, by relative path."""
        return {
            str(path.relative_to(self.directory)): path.read_bytes()
            for path in self.directory.rglob("*")
            if path.is_file() and path.name != ".download.lock"
        }

    def wanted(self) -> dict[str, bytes]:
        """What `stored` is when all of longlive's files are there."""
        return {
            f"{repository.partition('/')[2]}/{path}": content
            for repository, files in self.hub.repositories.items()
            for path, content in files.items()
            if path != "README.md"
        }


def never_ready(_: PipelineSpec) -> bool:
    return False


@pytest.fixture
async def hub() -> AsyncIterator[HubDouble]:
    async with HubDouble() as running:
        running.add(ARTIFACTS[ID])
        yield running


@pytest.fixture
async def place(hub: HubDouble, tmp_path: Path) -> AsyncIterator[Place]:
    models = Models(tmp_path / "models", Hub(hub.url, "hf_top-secret", (0.01, 0.01, 0.01)), never_ready)
    async with serving(make_app(models_blueprint(models, DoubleServing()))) as client:
        yield Place(client, models, tmp_path / "models", hub)
    await models.close()


# Status


WAN = ("config.json", "Wan2.1_VAE.pth", "google")
UMT5 = "umt5-xxl-enc-fp8_e4m3fn.safetensors"
VACE = "Wan2_1-VACE_module_1_3B_bf16.safetensors"


@pytest.mark.parametrize(
    ("pipeline_id", "own"),
    [
        ("streamdiffusionv2", {"jerryfeng/StreamDiffusionV2": ("wan_causal_dmd_v2v/model.pt",)}),
        ("longlive", {"Efficient-Large-Model/LongLive-1.3B": (MODEL, "models/lora.pt")}),
        ("reward-forcing", {"JaydenLu666/Reward-Forcing-T2V-1.3B": ("rewardforcing.pt",)}),
        ("memflow", {"KlingTeam/MemFlow": ("base.pt", "lora.pt")}),
        (
            "krea-realtime-video",
            {
                "Kijai/WanVideo_comfy": (UMT5,),  # there is no VACE for 14B
                "Wan-AI/Wan2.1-T2V-14B": ("config.json",),
                "krea/krea-realtime-video": ("krea-realtime-video-14b.safetensors",),
            },
        ),
        ("passthrough", None),
    ],
)
def test_each_pipeline_has_the_files_of_its_authors(
    pipeline_id: str, own: dict[str, tuple[str, ...]] | None
) -> None:
    """The tables of api.md 5.2, wan.md 7.1 and the pipelines' specifications."""
    shared = {"Wan-AI/Wan2.1-T2V-1.3B": WAN, "Kijai/WanVideo_comfy": (UMT5, VACE)}

    assert ARTIFACTS.keys() == SPECS.keys()
    listed = {artifact.repository_id(): artifact.files for artifact in ARTIFACTS[pipeline_id]}
    assert listed == ({} if own is None else shared | own)


async def test_nothing_downloaded_lists_what_is_missing(place: Place) -> None:
    assert await place.status() == {
        "downloaded": False,
        "progress": None,
        "engines_ready": False,
        "missing": [
            "Wan2.1-T2V-1.3B/config.json",
            "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
            "Wan2.1-T2V-1.3B/google",
            "WanVideo_comfy/umt5-xxl-enc-fp8_e4m3fn.safetensors",
            "WanVideo_comfy/Wan2_1-VACE_module_1_3B_bf16.safetensors",
            "LongLive-1.3B/models/longlive_base.pt",
            "LongLive-1.3B/models/lora.pt",
        ],
    }


@pytest.mark.parametrize("pipeline_id", [id for id in SPECS if id != "passthrough"])
async def test_files_of_an_existing_installation_count(place: Place, pipeline_id: str) -> None:
    for name in place.models.missing(pipeline_id):
        path = (
            place.directory / name / "umt5-xxl" / "x" if name.endswith("google") else place.directory / name
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    status = await place.status(pipeline_id)

    assert (status["downloaded"], status["missing"]) == (True, [])


async def test_empty_and_partial_files_do_not_count(place: Place) -> None:
    base, longlive = place.directory / "Wan2.1-T2V-1.3B", place.directory / "LongLive-1.3B" / "models"
    (base / "google" / "umt5-xxl").mkdir(parents=True)
    longlive.mkdir(parents=True)
    (base / "config.json").touch()
    (base / "Wan2.1_VAE.pth.incomplete").write_bytes(b"x")
    (longlive / "lora.pt").mkdir()

    assert (await place.status())["missing"] == place.models.missing("longlive")
    assert len(place.models.missing("longlive")) == 7


async def test_directory_with_a_file_yet_to_come_is_missing(place: Place) -> None:
    google = place.directory / "Wan2.1-T2V-1.3B" / "google" / "umt5-xxl"
    google.mkdir(parents=True)
    (google / "spiece.model").write_bytes(b"x")
    before = place.models.missing(ID)
    (google / "tokenizer.json.incomplete").touch()

    assert "Wan2.1-T2V-1.3B/google" not in before
    assert "Wan2.1-T2V-1.3B/google" in place.models.missing(ID)


async def test_passthrough_needs_nothing_and_completes_at_once(place: Place) -> None:
    answer = await place.start("passthrough")

    assert (answer.status, answer.json()) == (200, {"message": "Model download started for passthrough"})
    assert await place.status("passthrough") == {
        "downloaded": True,
        "progress": None,
        "engines_ready": False,
        "missing": [],
    }


async def test_engines_are_reported_beside_the_files(tmp_path: Path, hub: HubDouble) -> None:
    models = Models(tmp_path, Hub(hub.url, None), lambda spec: spec.id == ID)

    assert (await models.status(ID))["engines_ready"] is True
    assert (await models.status("memflow"))["engines_ready"] is False
    await models.close()


async def test_unknown_pipeline_is_not_found(place: Place) -> None:
    status = await place.client.call("GET", f"{URL}/status?pipeline_id=nope")
    download = await place.start("nope")

    assert (status.status, download.status) == (404, 404)
    assert "longlive" in status.json()["detail"]


async def test_missing_and_empty_ids_are_refused(place: Place) -> None:
    no_query = await place.client.call("GET", f"{URL}/status")
    no_key = await place.client.call("POST", f"{URL}/download", json_body={})
    empty = await place.start("")

    assert (no_query.status, no_query.json()["detail"][0]["loc"]) == (422, ["query", "pipeline_id"])
    assert (no_key.status, no_key.json()["detail"][0]["loc"]) == (422, ["body", "pipeline_id"])
    assert (empty.status, empty.json()) == (400, {"detail": "pipeline_id is required"})


# Downloads


async def test_download_brings_exactly_the_wanted_files(place: Place) -> None:
    started = await place.start()
    status = await place.ended()

    assert (started.status, started.json()) == (200, {"message": "Model download started for longlive"})
    assert status == {"downloaded": True, "progress": None, "engines_ready": False, "missing": []}
    assert place.stored() == place.wanted()


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", b"<!doctype html><html>"],
    ids=["pointer", "page"],
)
async def test_a_pointer_or_page_counts_as_missing_and_is_replaced(place: Place, content: bytes) -> None:
    await place.start()
    await place.ended()
    (place.directory / "LongLive-1.3B" / MODEL).write_bytes(content)

    found = await place.status()
    await place.start()
    await place.ended()

    assert found["missing"] == [f"LongLive-1.3B/{MODEL}"]
    assert place.stored() == place.wanted()


async def test_finished_files_are_not_fetched_again(place: Place) -> None:
    await place.start()
    await place.ended()
    place.hub.requests.clear()
    (place.directory / "LongLive-1.3B" / MODEL).unlink()

    await place.start()
    await place.ended()

    assert [r.path.rpartition("/")[2] for r in place.hub.file_requests()] == ["longlive_base.pt"]
    assert place.stored() == place.wanted()


async def test_file_of_another_size_is_replaced(place: Place) -> None:
    path = place.directory / "LongLive-1.3B" / MODEL
    path.parent.mkdir(parents=True)
    path.write_bytes(b"truncated by another tool")

    await place.start()
    await place.ended()

    assert place.stored() == place.wanted()


async def test_second_request_is_refused_from_the_first_on(place: Place) -> None:
    place.hub.listing_delay_s = 0.3

    first, second = await place.start(), await place.start()
    during = await place.status()
    await place.ended()
    after = await place.start()

    assert [a.status for a in (first, second, after)] == [200, 409, 200]
    assert second.json() == {"detail": "Download already in progress for longlive"}
    assert during["downloaded"] is False
    assert during["progress"]["is_downloading"] is True
    assert (await place.ended())["downloaded"] is True


async def test_progress_tells_of_the_repository_and_of_all(place: Place) -> None:
    place.hub.slow = 0.02
    await place.start()
    seen = []
    while (progress := (await place.status())["progress"]) is not None:
        seen.append(progress)
        await asyncio.sleep(0.05)

    total_mb = round(sum(map(len, place.wanted().values())) / (1 << 20), 1)
    started = [p for p in seen if p["current_artifact"] is not None]
    assert {p["current_artifact"] for p in started} == {
        "Wan-AI/Wan2.1-T2V-1.3B",
        "Kijai/WanVideo_comfy",
        "Efficient-Large-Model/LongLive-1.3B",
    }
    assert all(p["is_downloading"] and p["stage"] == "download" and "error" not in p for p in seen)
    assert {p["total_mb"] for p in started} == {total_mb}
    totals = [p["total_percentage"] for p in started]
    assert totals == sorted(totals)
    assert 0 < totals[len(totals) // 2] < 100
    assert any(p["percentage"] < p["total_percentage"] for p in started)  # starts anew with each repository
    assert all(0 <= p["percentage"] <= 100 for p in seen)


async def test_directory_counts_only_when_its_last_file_is_there(place: Place) -> None:
    place.hub.failures["google/vocab.json"] = [Reply(404)]

    await place.start()
    status = await place.ended()

    assert (place.directory / "Wan2.1-T2V-1.3B" / "google" / "umt5-xxl" / "spiece.model").exists()
    assert "Wan2.1-T2V-1.3B/google" in status["missing"]


async def test_interrupted_transfer_is_resumed(place: Place) -> None:
    place.hub.failures[MODEL] = [lambda content: Reply(body=content, cut_after=400)]

    await place.start()
    status = await place.ended()

    ranges = [r.headers.get("range") for r in place.hub.file_requests() if r.path.endswith("base.pt")]
    assert status["downloaded"] is True
    assert ranges == [None, "bytes=400-"]
    assert place.stored() == place.wanted()


async def test_unfinished_file_of_an_earlier_process_is_resumed(place: Place) -> None:
    part = place.directory / "LongLive-1.3B" / f"{MODEL}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(place.wanted()[f"LongLive-1.3B/{MODEL}"][:700])

    await place.start()
    await place.ended()

    ranges = [r.headers.get("range") for r in place.hub.file_requests() if r.path.endswith("base.pt")]
    assert ranges == ["bytes=700-"]
    assert place.stored() == place.wanted()


@pytest.mark.parametrize(
    "part", [b"x" * 700, b"x" * 1000, b"x" * 1001, b""], ids=["other", "other-full", "longer", "empty"]
)
async def test_unfinished_file_with_other_content_starts_over(place: Place, part: bytes) -> None:
    path = place.directory / "LongLive-1.3B" / f"{MODEL}.incomplete"
    path.parent.mkdir(parents=True)
    path.write_bytes(part)

    await place.start()
    status = await place.ended()

    assert status["downloaded"] is True
    assert place.stored() == place.wanted()


async def test_complete_but_unrenamed_file_is_not_fetched_again(place: Place) -> None:
    path = place.directory / "LongLive-1.3B" / f"{MODEL}.incomplete"
    path.parent.mkdir(parents=True)
    path.write_bytes(place.wanted()[f"LongLive-1.3B/{MODEL}"])

    await place.start()
    await place.ended()

    assert [r for r in place.hub.file_requests() if r.path.endswith("base.pt")] == []
    assert place.stored() == place.wanted()


@pytest.mark.parametrize(
    "answer",
    [
        lambda content: Reply(body=content),  # ignores the range
        lambda content: Reply(206, content, {"Content-Range": "bytes 0-999/1000"}),
        lambda content: Reply(416),
        lambda content: Reply(body=content + b"too much"),
        lambda content: Reply(206, b"y" * 300, {"Content-Range": "bytes 700-999/1000"}),
    ],
    ids=["200", "206 from the start", "416", "too long", "wrong bytes"],
)
async def test_odd_answer_to_a_resumed_request_ends_in_the_right_file(place: Place, answer: Any) -> None:
    part = place.directory / "LongLive-1.3B" / f"{MODEL}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(place.wanted()[f"LongLive-1.3B/{MODEL}"][:700])
    place.hub.failures[MODEL] = [answer]

    await place.start()
    status = await place.ended()

    assert status["downloaded"] is True
    assert place.stored() == place.wanted()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_passing_trouble_is_survived(place: Place, status: int) -> None:
    place.hub.failures[MODEL] = [Reply(status), Reply(status, headers={"Retry-After": "0"}), Reply(status)]

    await place.start()

    assert (await place.ended())["downloaded"] is True


async def test_trouble_that_stays_is_reported_after_three_more_tries(place: Place) -> None:
    place.hub.failures[MODEL] = [Reply(503)] * 50
    place.hub.refused = {f"{MIRROR}/LongLive-1.3B": 404}

    await place.start()
    status = await place.ended()

    tries = [r for r in place.hub.file_requests() if r.path.endswith("base.pt")]
    assert len(tries) == 4
    assert status["downloaded"] is False
    assert status["progress"]["is_downloading"] is False
    assert f"Efficient-Large-Model/LongLive-1.3B: {MODEL}: HTTP 503" in status["progress"]["error"]
    assert status["missing"] == [f"LongLive-1.3B/{MODEL}", "LongLive-1.3B/models/lora.pt"]


async def test_wrong_content_is_never_put_in_place(place: Place) -> None:
    place.hub.wrong_hash = True

    await place.start()
    status = await place.ended()

    assert "does not match its hash" in status["progress"]["error"]
    assert not (place.directory / "Wan2.1-T2V-1.3B" / "Wan2.1_VAE.pth").exists()


@pytest.mark.parametrize(
    ("code", "advice"), [(401, "set HF_TOKEN"), (403, "accept its licence"), (404, "no such repository")]
)
async def test_refusal_is_reported_and_stays_until_the_next_request(
    place: Place, code: int, advice: str
) -> None:
    place.hub.refused = {"Wan-AI/Wan2.1-T2V-1.3B": code, "daydreamlive/Wan2.1-T2V-1.3B": code}

    await place.start()
    first, second = await place.ended(), await place.status()
    place.hub.refused.clear()
    await place.start()
    healed = await place.ended()

    assert first == second
    assert f"Wan-AI/Wan2.1-T2V-1.3B: HTTP {code}" in first["progress"]["error"]
    assert advice in first["progress"]["error"]
    assert healed["downloaded"] is True


async def test_mirror_helps_out_when_the_author_refuses(place: Place) -> None:
    place.hub.add(ARTIFACTS[ID], owner=MIRROR)
    place.hub.refused = {"Wan-AI/Wan2.1-T2V-1.3B": 404}  # not even a listing
    place.hub.refused_files = {"Kijai/WanVideo_comfy": 403}  # a listing but no files
    del place.hub.repositories["Efficient-Large-Model/LongLive-1.3B"][MODEL]  # not all files

    await place.start()
    status = await place.ended()

    assert status["downloaded"] is True
    assert place.stored() == place.wanted()


async def test_owners_are_asked_in_the_configured_order(hub: HubDouble, tmp_path: Path) -> None:
    hub.add(ARTIFACTS[ID], owner=MIRROR)
    models = Models(tmp_path, Hub(hub.url, None), never_ready, owners=(MIRROR, "upstream"))

    await models.download(ID, Progress())
    await models.close()

    assert {r.path.split("/")[1] for r in hub.file_requests()} == {MIRROR}


async def test_settings_name_the_hub_and_the_owners(hub: HubDouble, tmp_path: Path) -> None:
    hub.add(ARTIFACTS[ID], owner="someone")
    env = {
        "WANSTREAM_HOME": str(tmp_path),
        "HF_ENDPOINT": f"{hub.url}/",
        "WANSTREAM_MODEL_OWNERS": " someone,",
    }
    models = Models.from_config(Config.from_env(env), never_ready)

    await models.download(ID, Progress())
    await models.close()

    assert {r.path.split("/")[1] for r in hub.file_requests()} == {"someone"}
    assert (tmp_path / "models" / "LongLive-1.3B" / MODEL).exists()


async def test_hub_without_scheme_is_reported(tmp_path: Path) -> None:
    models = Models(tmp_path, Hub("huggingface.co", None), never_ready)

    with pytest.raises(DownloadError, match="HF_ENDPOINT must be a URL"):
        await models.download(ID, Progress())
    await models.close()


async def test_unreachable_hub_is_reported(hub: HubDouble, tmp_path: Path) -> None:
    models = Models(tmp_path, Hub("http://127.0.0.1:9", None, (0.01,)), never_ready)

    with pytest.raises(DownloadError) as caught:
        await models.download(ID, Progress())
    await models.close()

    page = "https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B"
    first, *files = str(caught.value).splitlines()
    assert first.startswith("http://127.0.0.1:9 cannot be reached: connection failed (ConnectError).")
    assert first.endswith(f"copy into {tmp_path}:")
    assert files[0] == f"{page}/resolve/main/config.json to Wan2.1-T2V-1.3B/config.json"
    assert files[2] == f"{page}/tree/main/google/ with all in it to Wan2.1-T2V-1.3B/google"
    assert len(files) == len(models.missing(ID))


async def test_gated_repository_is_told_from_a_missing_one(place: Place) -> None:
    gated = Reply(401, headers={"X-Error-Code": "GatedRepo"})
    place.hub.failures[MODEL] = [gated]
    place.hub.refused = {f"{MIRROR}/LongLive-1.3B": 404}

    await place.start()
    status = await place.ended()

    assert f"{MODEL}: HTTP 401, access is not granted: accept its licence" in status["progress"]["error"]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"sha": "x", "siblings": [{}]}', b"null"])
async def test_server_that_is_no_hub_is_reported(hub: HubDouble, tmp_path: Path, body: bytes) -> None:
    class Other(HubDouble):
        async def answer(self, request: Any) -> Reply:
            return Reply(body=body)

    async with Other() as other:
        models = Models(tmp_path, Hub(other.url, None, ()), never_ready)

        with pytest.raises(DownloadError, match="does not answer like a Hugging Face hub"):
            await models.download(ID, Progress())
        await models.close()


@pytest.mark.parametrize("path", ["google/../../../evil.txt", "google//../../../evil.txt", "google/a\0.txt"])
async def test_path_that_leaves_the_directory_is_refused(place: Place, path: str, tmp_path: Path) -> None:
    place.hub.repositories["Wan-AI/Wan2.1-T2V-1.3B"][path] = b"evil"

    await place.start()
    status = await place.ended()

    assert "path that is not allowed" in status["progress"]["error"]
    assert place.stored() == {}
    assert sorted(os.listdir(tmp_path)) == ["models"]


async def test_full_disk_is_noticed_before_the_download(place: Place) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 60

    place.hub.repositories["Efficient-Large-Model/LongLive-1.3B"][MODEL] = Huge()

    await place.start()
    status = await place.ended()

    assert "GB are to be downloaded" in status["progress"]["error"]
    assert "DAYDREAM_SCOPE_MODELS_DIR" in status["progress"]["error"]
    assert place.hub.file_requests() == []


async def test_unwritable_directory_is_reported(hub: HubDouble, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file is in the way")
    models = Models(tmp_path / "models", Hub(hub.url, None), never_ready)

    with pytest.raises(DownloadError, match="cannot be written"):
        await models.download(ID, Progress())
    await models.close()


async def test_pipelines_that_share_files_fetch_them_once(place: Place) -> None:
    place.hub.add(ARTIFACTS["memflow"])
    place.hub.slow = 0.02

    started = [(await place.start(id)).status for id in (ID, "memflow")]
    ended = [(await place.ended(id))["downloaded"] for id in (ID, "memflow")]

    paths = [r.path for r in place.hub.file_requests()]
    assert started == [200, 200]
    assert ended == [True, True]
    assert len(paths) == len(set(paths))


async def test_another_process_on_the_same_directory_waits(place: Place, hub: HubDouble) -> None:
    hub.slow = 0.02
    other = Models(place.directory, Hub(hub.url, None), never_ready)

    await asyncio.gather(
        place.models.download(ID, Progress()), asyncio.create_task(other.download(ID, Progress()))
    )
    await other.close()

    paths = [r.path for r in hub.file_requests()]
    assert len(paths) == len(set(paths))
    assert place.stored() == place.wanted()


async def test_closing_cancels_and_the_next_download_goes_on(place: Place, hub: HubDouble) -> None:
    hub.repositories["Wan-AI/Wan2.1-T2V-1.3B"]["Wan2.1_VAE.pth"] = bytes(100_000)  # 50 s at this pace
    hub.slow = 0.05
    await place.start()
    part = place.directory / "Wan2.1-T2V-1.3B" / "Wan2.1_VAE.pth.incomplete"
    for _ in range(200):
        if part.exists() and part.stat().st_size:
            break
        await asyncio.sleep(0.02)
    await place.models.close()
    stored = part.stat().st_size

    hub.slow = 0.0
    hub.requests.clear()
    second = Models(place.directory, Hub(hub.url, None), never_ready)
    await second.download(ID, Progress())
    await second.close()

    assert 0 < stored < 100_000
    ranges = [r.headers.get("range") for r in hub.file_requests() if r.path.endswith("VAE.pth")]
    assert ranges == [f"bytes={stored}-"]
    assert place.stored() == place.wanted()


async def test_token_goes_to_the_hub_only(place: Place) -> None:
    async with Storage(place.hub) as storage:
        place.hub.files_at = storage.url
        await place.start()
        status = await place.ended()

        assert status["downloaded"] is True
        assert {r.headers.get("authorization") for r in place.hub.requests} == {"Bearer hf_top-secret"}
        assert len(storage.requests) == len(place.hub.file_requests()) > 0
        assert not any("authorization" in r.headers for r in storage.requests)


async def test_resumed_transfer_is_redirected_with_its_range(place: Place) -> None:
    async with Storage(place.hub) as storage:
        place.hub.files_at = storage.url
        storage.failures[MODEL] = [lambda content: Reply(body=content, cut_after=400)]
        await place.start()
        await place.ended()

        ranges = [r.headers.get("range") for r in storage.requests if r.path.endswith("base.pt")]
        assert ranges == [None, "bytes=400-"]
        assert place.stored() == place.wanted()


async def test_logs_and_errors_hold_no_token(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    place.hub.failures[MODEL] = [
        Reply(503),
        Reply(302, headers={"Location": "http://127.0.0.1:9/?sig=secret"}),
    ]
    place.hub.refused = {"daydreamlive/LongLive-1.3B": 401}
    logging.getLogger("httpx").setLevel(logging.WARNING)  # as in the product: libraries log warnings only

    await place.start()
    status = await place.ended()

    assert "another try follows" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in str(status)


# Command line


def command(tmp_path: Path, hub: HubDouble | None, *options: str, **env: str) -> subprocess.Popen[str]:
    env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_top-secret"} if hub else {}
    return subprocess.Popen(
        [sys.executable, "-c", "from gateway.files.models.cli import main; main()", *options],
        env=clean_environment(tmp_path / "home", env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def output_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = await asyncio.to_thread(process.communicate, None, 30)
    return process.returncode, out, err


async def test_command_downloads_and_tells_how_far_it_is(hub: HubDouble, tmp_path: Path) -> None:
    hub.slow = 0.02

    code, out, err = await output_of(command(tmp_path, hub, "--pipeline", ID))

    assert (code, err) == (0, "")
    assert "100.0 %  0 of 0 MB  Efficient-Large-Model/LongLive-1.3B (100.0 %)\n" in out
    assert out.endswith("All files of longlive are there.\n")
    assert (tmp_path / "home" / "models" / "LongLive-1.3B" / MODEL).stat().st_size == 1000


async def test_command_fails_with_the_reason(hub: HubDouble, tmp_path: Path) -> None:
    hub.refused = {"Wan-AI/Wan2.1-T2V-1.3B": 401, "daydreamlive/Wan2.1-T2V-1.3B": 401}

    code, _, err = await output_of(command(tmp_path, hub, "-p", ID))

    assert code == 1
    assert err.startswith("ERROR: Wan-AI/Wan2.1-T2V-1.3B: HTTP 401")


@pytest.mark.parametrize("options", [("--pipeline", "nope"), ()])
async def test_command_lists_the_pipelines_for_a_wrong_id(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, _, err = await output_of(command(tmp_path, None, *options))

    assert code == 2
    assert all(id in err for id in SPECS)


async def test_command_without_a_network_says_what_to_fetch_by_hand(hub: HubDouble, tmp_path: Path) -> None:
    process = command(tmp_path, hub, "-p", ID, HF_HUB_OFFLINE="1")

    code, _, err = await output_of(process)

    assert code == 1
    assert err.startswith("ERROR: HF_HUB_OFFLINE forbids to ask the hub.")
    assert (
        "LongLive-1.3B/resolve/main/models/longlive_base.pt to LongLive-1.3B/models/longlive_base.pt" in err
    )
    assert hub.requests == []


async def test_command_has_nothing_to_do_for_passthrough(tmp_path: Path) -> None:
    assert (await output_of(command(tmp_path, None, "-p", "passthrough")))[0] == 0


@pytest.mark.parametrize(
    ("gpu_gb", "options", "told"),
    [
        (4, (), "longlive is not downloaded. This GPU (3.0 GB free) has no room for it"),
        (4, ("--anyway",), "the download begins"),
        (80, (), "the download begins"),
        (None, (), "the download begins"),
    ],
)
def test_command_refuses_what_the_gpu_has_no_room_for(
    gpu_gb: int | None, options: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = None if gpu_gb is None else (1_000_000_000, gpu_gb * 1_000_000_000)
    monkeypatch.setattr(checkpoints, "gpu_memory_bytes", lambda: memory)
    monkeypatch.setattr(checkpoints, "torch_has_cuda", lambda: True)

    async def begin(pipeline_id: str, config: Config) -> None:
        raise DownloadError("the download begins")

    monkeypatch.setattr(cli, "_download", begin)
    env = {"WANSTREAM_HOME": str(tmp_path), "DAYDREAM_SCOPE_MODELS_DIR": None}

    result = CliRunner(env=env).invoke(cli.main, ["-p", ID, *options])

    assert result.exit_code == 1
    assert told in result.output


async def test_command_ends_on_interrupt_and_keeps_what_it_has(hub: HubDouble, tmp_path: Path) -> None:
    hub.repositories["Wan-AI/Wan2.1-T2V-1.3B"]["Wan2.1_VAE.pth"] = bytes(100_000)  # 50 s at this pace
    hub.slow = 0.05
    process = command(tmp_path, hub, "-p", ID)
    part = tmp_path / "home" / "models" / "Wan2.1-T2V-1.3B" / "Wan2.1_VAE.pth.incomplete"
    for _ in range(1000):
        if part.exists() and part.stat().st_size:
            break
        await asyncio.sleep(0.02)

    process.send_signal(signal.SIGINT)
    code, _, err = await output_of(process)

    assert (code, err) == (130, "Interrupted; the next download goes on from here.\n")
    assert part.stat().st_size > 0
    shutil.rmtree(tmp_path / "home")


# Sizes and refusals


async def test_a_download_tells_its_size_before_it_begins_and_what_is_left_of_it(place: Place) -> None:
    before = await place.models.size(ID)
    await place.start()
    await place.ended()
    after = await place.models.size(ID)

    assert before.missing_bytes == before.total_bytes == sum(map(len, place.wanted().values()))
    assert (after.total_bytes, after.missing_bytes) == (before.total_bytes, 0)


async def test_who_asks_for_a_size_does_not_wait_for_a_hub_that_fails(hub: HubDouble, tmp_path: Path) -> None:
    models = Models(tmp_path, Hub(hub.url, None, (3600.0,)), never_ready)
    hub.refused = dict.fromkeys((a.repository_id(owner) for a in ARTIFACTS[ID] for owner in OWNERS), 503)

    with pytest.raises(DownloadError):
        await models.size(ID)

    await models.close()


class SmallGpu(DoubleServing):
    """A GPU that nothing fits on."""

    async def room(self, spec: PipelineSpec) -> Room | None:  # type: ignore[override]
        return Room("GPU memory", 4_000_000_000, [])


async def test_what_no_gpu_here_has_room_for_is_downloaded_only_when_asked_twice(
    hub: HubDouble, tmp_path: Path
) -> None:
    models = Models(tmp_path, Hub(hub.url, None, ()), never_ready)
    body = {"pipeline_id": ID}
    async with serving(make_app(models_blueprint(models, SmallGpu()))) as client:
        refused = await client.call("POST", f"{URL}/download", json_body=body)
        asked_before = len(hub.requests)
        accepted = await client.call("POST", f"{URL}/download", json_body=body | {"anyway": True})
    await models.close()

    assert refused.status == 400
    assert "This GPU (4.0 GB free) has no room for it" in refused.text
    assert asked_before == 0
    assert accepted.status == 200
