"""LoRA files: listing, installing from services on the internet, deleting; over real sockets."""

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config import Config, Secrets
from gateway.files.loras.check import problem_of
from gateway.files.loras.loras import Loras
from gateway.files.loras.sources import LoraEndpoints
from gateway.files.public_http import AddressNotAllowedError, PublicTransport, is_public
from gateway.routes.loras import loras_blueprint
from tests.directory_scan import scan
from tests.local_http import LocalHttp, Reply, Request
from tests.serve_app import make_app, serving
from tests.server.client import Answer, HttpClient
from tests.server.peer import until


def safetensors(**tensors: bytes) -> bytes:
    """A file of one-dimensional U8 tensors."""
    header, data = {}, b""
    for name, content in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": offsets}
        data += content
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + data


CONTENT = safetensors(a=b"12345678", b=b"90")


class Service(LocalHttp):
    """Answers `replies` by path, or with `content` at every path that has none."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: dict[str, Reply] = {}

    async def answer(self, request: Request) -> Reply:
        return self.replies.get(request.path, Reply(404))


class Place:
    """A running server with a LoRA directory, and a hub and CivitAI that it knows."""

    def __init__(self, client: HttpClient, directory: Path, hub: Service, civitai: Service) -> None:
        self.client = client
        self.directory = directory
        self.hub = hub
        self.civitai = civitai
        self.loaded: list[Path] = []

    async def listed(self) -> list[dict[str, Any]]:
        answer = await self.client.call("GET", "/api/v1/loras")
        files: list[dict[str, Any]] = answer.json()["lora_files"]
        return files

    async def install(self, url: str, filename: str | None = None) -> Answer:
        body = {"url": url} | ({} if filename is None else {"filename": filename})
        return await self.client.call("POST", "/api/v1/loras", json_body=body)

    async def delete(self, name: str) -> Answer:
        return await self.client.call("DELETE", f"/api/v1/loras/{name}")

    def write(self, name: str, content: bytes = CONTENT) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


SECRETS = Secrets(hf_token="hf_top-secret", civitai_token="civ_top-secret")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with Service() as hub, Service() as civitai:
        loaded: list[Path] = []
        directory, shared = tmp_path / "models" / "lora", tmp_path / "shared"
        directory.mkdir(parents=True)
        loras = Loras(directory, lambda: loaded, SECRETS, LoraEndpoints(hub.url, civitai.url), [shared])
        async with serving(make_app(loras_blueprint(loras))) as client:
            place = Place(client, directory, hub, civitai)
            place.loaded = loaded
            yield place


def manifest(place: Place) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((place.directory / "lora_manifest.json").read_text())["entries"]
    return entries


# Listing


@pytest.mark.parametrize("path", ["/api/v1/loras", "/api/v1/lora/list"])
async def test_both_lists_show_safetensors_files_by_folder_and_name(place: Place, path: str) -> None:
    for name in ("sub/a.safetensors", "d.SAFETENSORS", "b.safetensors", "sub/deep/c.safetensors"):
        place.write(name)
    for name in ("x.pt", "x.bin", "notes.txt", "y.safetensors.part", ".z.safetensors", ".git/w.safetensors"):
        place.write(name)

    files = (await place.client.call("GET", path)).json()["lora_files"]

    assert [(f["folder"], f["name"]) for f in files] == [
        (None, "b"),
        (None, "d"),
        ("sub", "a"),
        ("sub/deep", "c"),
    ]
    assert files[2] == {
        "name": "a",
        "path": str(place.directory / "sub" / "a.safetensors"),
        "size_mb": 0.0,
        "folder": "sub",
        "sha256": None,
        "provenance": None,
        "read_only": False,
        "problem": None,
        "title": None,
        "description": None,
        "trigger_words": [],
    }


async def test_size_is_in_mib(place: Place) -> None:
    place.write("big.safetensors", bytes(2_621_440))

    assert [f["size_mb"] for f in await place.listed()] == [2.5]


async def test_settings_name_the_directories_and_the_hub(tmp_path: Path) -> None:
    async with Service() as hub:
        hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(body=CONTENT)
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "s.safetensors").write_bytes(CONTENT)
        env = {
            "WANSTREAM_HOME": str(tmp_path),
            "HF_ENDPOINT": hub.url,
            "DAYDREAM_SCOPE_LORA_SHARED_DIR": str(tmp_path / "shared"),
        }
        loras = Loras.from_config(Config.from_env(env), lambda: [])

        await loras.install(f"{hub.url}/o/r/resolve/main/x.safetensors", None)

        assert [(f["name"], f["read_only"]) for f in await loras.entries()] == [("s", True), ("x", False)]
        assert (tmp_path / "models" / "lora" / "x.safetensors").exists()


async def test_missing_directory_lists_nothing(tmp_path: Path) -> None:
    assert await Loras(tmp_path / "none", lambda: []).entries() == []


async def test_linked_directories_are_followed_once(place: Place, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.safetensors").write_bytes(CONTENT)
    (elsewhere / "back").symlink_to(place.directory)
    (place.directory / "link").symlink_to(elsewhere)
    (place.directory / "loop").symlink_to(place.directory)
    (place.directory / "broken.safetensors").symlink_to("gone")

    assert [(f["folder"], f["name"]) for f in await place.listed()] == [("link", "a")]


async def test_shared_files_are_listed_as_read_only(place: Place, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "s.safetensors").write_bytes(CONTENT)
    place.write("own.safetensors")

    assert [(f["name"], f["read_only"]) for f in await place.listed()] == [("own", False), ("s", True)]


async def test_files_are_listed_once_where_directories_overlap(tmp_path: Path) -> None:
    own = tmp_path / "models" / "lora"
    (own / "sub").mkdir(parents=True)
    (own / "sub" / "a.safetensors").write_bytes(CONTENT)
    (tmp_path / "models" / "b.safetensors").write_bytes(CONTENT)
    loras = Loras(own, lambda: [], shared=[own, own / "sub", tmp_path / "models"])

    assert [(f["name"], f["read_only"]) for f in await loras.entries()] == [("b", True), ("a", False)]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"entries": []}', '{"entries": {"a.safetensors": 7}}', "null"]
)
async def test_unreadable_manifest_counts_as_empty(place: Place, text: str) -> None:
    place.write("a.safetensors")
    (place.directory / "lora_manifest.json").write_text(text)

    assert [(f["name"], f["sha256"]) for f in await place.listed()] == [("a", None)]


# Headers


def with_header(text: bytes, data: bytes = b"12345678") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def with_entry(**entry: Any) -> bytes:
    """A file of eight bytes with one tensor whose entry is this."""
    tensor = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} | entry
    return with_header(json.dumps({"blocks.0": tensor}).encode())


GOOD_ENTRY = b'"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(CONTENT, None, id="good"),
        pytest.param(with_entry(), None, id="good entry"),
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(bytes(10), "refuses", id="zeros"),
        pytest.param(CONTENT[:-1], "not fully covered", id="one byte short"),
        pytest.param(CONTENT + b"x", "not fully covered", id="one byte more"),
        pytest.param(CONTENT[:20], "truncated", id="cut in the header"),
        pytest.param(safetensors(), "no tensors", id="no tensors"),
        pytest.param(with_header(b"[]"), "refuses", id="a list"),
        pytest.param((1 << 62).to_bytes(8, "little") + b"{}", "truncated", id="length"),
        pytest.param(with_header(b"[" * 20_000), "refuses", id="nested"),
        pytest.param(
            with_header(b'{"__metadata__": {"a": {"b": "c"}}, ' + GOOD_ENTRY + b"}"),
            "expected a string",
            id="object",
        ),
        pytest.param(with_header(b'{"__metadata__": {"a": NaN}, ' + GOOD_ENTRY + b"}"), "refuses", id="NaN"),
        pytest.param(
            with_header(b'{"__metadata__": {"a": 1}, ' + GOOD_ENTRY + b"}"), "expected a string", id="number"
        ),
        pytest.param(with_header(f"{{{GOOD_ENTRY.decode()}}}".encode("utf-16")), "UTF-8", id="UTF-16"),
        pytest.param(with_header(b"\xef\xbb\xbf{" + GOOD_ENTRY + b"}"), "refuses", id="BOM"),
        pytest.param(with_entry(shape=[9]), "refuses", id="shape"),
        pytest.param(with_entry(shape=[-8]), "refuses", id="negative"),
        pytest.param(with_entry(shape=["8"]), "refuses", id="text"),
        pytest.param(with_entry(dtype="F99"), "refuses", id="dtype"),
        pytest.param(with_entry(data_offsets=[8, 0]), "refuses", id="backwards"),
        pytest.param(with_entry(data_offsets=[0, 1, 8]), "refuses", id="three offsets"),
        pytest.param(b"<!DOCTYPE html><html><title>Log in", "a web page", id="HTML"),
        pytest.param(b"\xef\xbb\xbf\r\n  <HTML>\n<head>", "a web page", id="HTML with BOM"),
        pytest.param("<html>".encode("utf-16"), "a web page", id="HTML in UTF-16"),
        pytest.param(b'<?xml version="1.0"?><Error>', "an XML document", id="XML"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "git-lfs",
            id="pointer",
        ),
        pytest.param(b"GGUF\x03\x00\x00\x00", "a GGUF file", id="GGUF"),
    ],
)
def test_the_library_judges_whether_a_file_can_be_read(
    tmp_path: Path, content: bytes, problem: str | None
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)

    found = problem_of(path)

    assert found is None if problem is None else problem in (found or "")


def test_a_hostile_header_is_not_parsed(tmp_path: Path) -> None:
    text = b'{"a": {"dtype": "U8", "shape": [' + b"1," * 10_000_000 + b'0], "data_offsets": [0, 0]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header(text, b""))

    assert "20 MB" in (problem_of(path) or "")


def test_file_that_changes_is_checked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(CONTENT)
    before = problem_of(path)
    path.write_bytes(CONTENT[:-1])

    assert before is None
    assert problem_of(path) is not None


# Installing


async def test_installed_file_is_listed_with_its_provenance(place: Place) -> None:
    place.hub.replies["/own/repo/resolve/main/dir/x.safetensors"] = Reply(body=CONTENT)

    answer = await place.install(f"{place.hub.url}/own/repo/resolve/main/dir/x.safetensors?download=true")

    assert answer.status == 200, answer.text
    assert answer.json()["message"] == "Installed 'x'"
    assert answer.json()["file"] == {
        "name": "x",
        "path": str(place.directory / "x.safetensors"),
        "size_mb": 0.0,
        "folder": None,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "provenance": {
            "source": "huggingface",
            "repo_id": "own/repo",
            "hf_filename": "dir/x.safetensors",
            "model_id": None,
            "version_id": None,
            "url": f"{place.hub.url}/own/repo/resolve/main/dir/x.safetensors?download=true",
        },
        "read_only": False,
        "problem": None,
        "title": None,
        "description": None,
        "trigger_words": [],
    }
    assert await place.listed() == [answer.json()["file"]]
    assert (place.directory / "x.safetensors").read_bytes() == CONTENT
    assert sorted(os.listdir(place.directory)) == ["lora_manifest.json", "x.safetensors"]
    entry = manifest(place)["x.safetensors"]
    assert entry.keys() == {"filename", "provenance", "sha256", "size_bytes", "added_at"}
    assert entry["size_bytes"] == len(CONTENT)


async def test_manifest_of_a_replaced_file_is_not_believed(place: Place) -> None:
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(body=CONTENT)
    await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors")

    place.write("x.safetensors", safetensors(other=b"1"))

    assert [(f["sha256"], f["provenance"]) for f in await place.listed()] == [(None, None)]


async def test_filename_of_the_request_wins_and_may_name_a_folder(place: Place) -> None:
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(body=CONTENT)

    answer = await place.install(
        f"{place.hub.url}/o/r/resolve/main/x.safetensors", "styles/Mein Stil.safetensors"
    )

    assert (answer.json()["file"]["folder"], answer.json()["file"]["name"]) == ("styles", "Mein Stil")


async def test_civitai_tells_the_name_of_a_file(place: Place) -> None:
    place.civitai.replies["/api/v1/model-versions/77"] = Reply(
        body=json.dumps(
            {"files": [{"name": "t.zip"}, {"name": "style.safetensors", "primary": True}, {"x": 1}]}
        ).encode()
    )
    place.civitai.replies["/api/download/models/77"] = Reply(body=CONTENT)

    answer = await place.install(f"{place.civitai.url}/api/download/models/77?type=Model")

    assert answer.status == 200, answer.text
    assert answer.json()["file"]["name"] == "style"
    assert answer.json()["file"]["provenance"] == {
        "source": "civitai",
        "repo_id": None,
        "hf_filename": None,
        "model_id": None,
        "version_id": "77",
        "url": f"{place.civitai.url}/api/download/models/77?type=Model",
    }


@pytest.mark.parametrize(
    "api", [Reply(500), Reply(body=b"{"), Reply(body=b"[]"), Reply(body=b'{"files": [7]}')]
)
async def test_content_disposition_is_the_last_source_of_a_name(place: Place, api: Reply) -> None:
    place.civitai.replies["/api/v1/model-versions/77"] = api
    headers = {"Content-Disposition": 'attachment; filename="../up/style.safetensors"'}
    place.civitai.replies["/api/download/models/77"] = Reply(body=CONTENT, headers=headers)

    answer = await place.install(f"{place.civitai.url}/api/download/models/77")

    assert answer.status == 200, answer.text
    assert answer.json()["file"]["path"] == str(place.directory / "style.safetensors")


async def test_nameless_download_asks_for_a_name(place: Place) -> None:
    place.civitai.replies["/api/download/models/77"] = Reply(body=CONTENT)

    answer = await place.install(f"{place.civitai.url}/api/download/models/77")

    assert answer.status == 400
    assert "send 'filename'" in answer.json()["detail"]


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.safetensors",
        "http://huggingface.co/a/b/resolve/main/x.safetensors",
        "https://huggingface.co:8443/a/b/resolve/main/x.safetensors",
        "https://huggingface.co.evil.example/a/b/resolve/main/x.safetensors",
        "https://evilhuggingface.co/a/b/resolve/main/x.safetensors",
        "https://huggingface.co@evil.example/x.safetensors",
        "https://127.0.0.1/x.safetensors",
        "https://[::1]/x.safetensors",
        "https://169.254.169.254/x.safetensors",
        "http://localhost:8000/x.safetensors",
        "file:///etc/x.safetensors",
        "ftp://huggingface.co/x.safetensors",
        "huggingface.co/a/b/resolve/main/x.safetensors",
        "",
        "::::",
        "https://",
        "https://\x00/x.safetensors",
    ],
)
async def test_other_addresses_are_refused(place: Place, url: str) -> None:
    answer = await place.install(url)

    assert answer.status == 400
    assert "huggingface.co" in answer.json()["detail"] or "is not a URL" in answer.json()["detail"]
    assert os.listdir(place.directory) == []


@pytest.mark.parametrize(
    "host", ["huggingface.co", "hf.co", "HuggingFace.co", "sub.huggingface.co", "civitai.com"]
)
async def test_known_hosts_are_accepted(place: Place, host: str) -> None:
    answer = await place.install(f"https://{host}/a/b/resolve/main/x.pt")

    assert (answer.status, answer.json()["detail"]) == (
        400,
        "'x.pt' is not a .safetensors file; other formats are not accepted.",
    )


async def test_preview_page_gets_a_hint(place: Place) -> None:
    answer = await place.install("https://huggingface.co/a/b/blob/main/x.safetensors")

    assert answer.status == 400
    assert "/resolve/" in answer.json()["detail"]


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/tmp/x.safetensors",
        "a/../../x.safetensors",
        ".x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        "x\0.safetensors",
        "link/x.safetensors",
        ".safetensors",
        "nul.safetensors",
    ],
)
async def test_hostile_filename_is_refused_and_nothing_is_written(
    place: Place, name: str, tmp_path: Path
) -> None:
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(body=CONTENT)
    (tmp_path / "outside").mkdir()
    (place.directory / "link").symlink_to(tmp_path / "outside")
    before = scan(tmp_path)

    answer = await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors", name)

    assert answer.status == 400, answer.text
    assert scan(tmp_path) == before
    assert place.hub.requests == []


# Uploading


async def upload(place: Place, query: str, content: bytes) -> Answer:
    return await place.client.call("POST", f"/api/v1/lora/upload{query}", body=content)


async def test_uploaded_file_is_stored_and_listed(place: Place) -> None:
    answer = await upload(place, "?filename=my%20styles/a.safetensors", CONTENT)

    file = answer.json()["file"]
    assert answer.status == 200
    assert await place.listed() == [file]
    assert file["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert (file["folder"], file["provenance"]["source"]) == ("my styles", "local")
    assert (place.directory / "my styles" / "a.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("query", "content", "status", "text"),
    [
        ("", CONTENT, 422, "Field required"),
        ("?filename=a.pt", CONTENT, 400, "other formats are not accepted"),
        ("?filename=..%2Fa.safetensors", CONTENT, 400, "without empty parts"),
        ("?filename=a.safetensors", CONTENT[:-1], 400, "What the client sent cannot be used: "),
        ("?filename=a.safetensors", b"", 400, "What the client sent cannot be used: "),
        ("?filename=a.safetensors", b"<!doctype html>", 400, "cannot be used: it is a web page"),
        ("?filename=mine.safetensors", CONTENT, 409, "exists"),
    ],
)
async def test_refused_upload_leaves_everything_as_it_was(
    place: Place, tmp_path: Path, query: str, content: bytes, status: int, text: str
) -> None:
    place.write("mine.safetensors")
    before = scan(tmp_path)

    answer = await upload(place, query, content)

    assert (answer.status, text in answer.text) == (status, True), answer.text
    assert scan(tmp_path) == before


async def test_upload_that_ends_early_leaves_nothing(place: Place) -> None:
    address = httpx.URL(place.client.url)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    path = "/api/v1/lora/upload?filename=a.safetensors"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    writer.write(head.encode() + CONTENT)
    await writer.drain()
    part = place.directory / "a.safetensors.part"
    await until(part.exists, 30, "the file's first bytes are stored")

    writer.close()
    await until(lambda: not part.exists(), 30, "they are removed")
    await reader.read()

    assert await place.listed() == []


async def test_existing_file_is_kept(place: Place) -> None:
    path = place.write("x.safetensors", b"mine")

    answer = await place.install("https://huggingface.co/a/b/resolve/main/x.safetensors")

    assert answer.status == 409
    assert "exists" in answer.json()["detail"]
    assert path.read_bytes() == b"mine"


async def test_second_install_of_the_same_file_is_refused_while_the_first_runs(place: Place) -> None:
    slow = Reply(body=CONTENT, piece_bytes=50, piece_delay_s=0.3)
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = slow
    url = f"{place.hub.url}/o/r/resolve/main/x.safetensors"

    answers = await asyncio.gather(place.install(url), place.install(url))

    assert sorted(a.status for a in answers) == [200, 409]


@pytest.mark.parametrize(("upstream", "status"), [(401, 401), (403, 403), (404, 404), (410, 500), (503, 500)])
async def test_refusal_of_the_service_is_passed_on(place: Place, upstream: int, status: int) -> None:
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(upstream)

    answer = await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors")

    assert answer.status == status
    assert f"HTTP {upstream}" in answer.json()["detail"]
    assert os.listdir(place.directory) == []


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(body=b"<html>Please log in</html>"), 400),
        (Reply(body=CONTENT[:-1]), 400),
        (Reply(body=b""), 400),
        (Reply(body=CONTENT, cut_after=40), 500),
        (Reply(302, headers={"Location": "/o/r/resolve/main/x.safetensors"}), 500),
        (Reply(302), 500),
        (Reply(body=CONTENT, headers={"Content-Length": str(1 << 60)}), 507),
    ],
)
async def test_failed_download_leaves_nothing(place: Place, reply: Reply, status: int) -> None:
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = reply

    answer = await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors")

    assert answer.status == status, answer.text
    assert os.listdir(place.directory) == []


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/x",
        "https://127.0.0.1:{port}/x",
        "https://localhost/x",
        "https://[::1]/x",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/x",
        "http://huggingface.co/x",
    ],
)
async def test_redirect_into_a_private_network_is_refused(place: Place, location: str) -> None:
    async with Service() as inner:
        inner.replies["/x"] = Reply(body=CONTENT)
        redirect = Reply(302, headers={"Location": location.format(port=inner.port)})
        place.hub.replies["/o/r/resolve/main/x.safetensors"] = redirect

        answer = await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors")

        assert answer.status == 400, answer.text
        assert "refused" in answer.json()["detail"]
        assert inner.requests == []


async def test_token_goes_to_the_hub_and_not_along_with_a_redirect(place: Place) -> None:
    elsewhere = f"{place.civitai.url}/storage/x"  # a trusted origin, but another one
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(307, headers={"Location": "/moved"})
    place.hub.replies["/moved"] = Reply(302, headers={"Location": elsewhere})
    place.civitai.replies["/storage/x"] = Reply(body=CONTENT)

    answer = await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors")

    assert answer.status == 200, answer.text
    assert [r.headers.get("authorization") for r in place.hub.requests] == ["Bearer hf_top-secret"] * 2
    [request] = place.civitai.requests
    assert "authorization" not in request.headers
    assert request.target == "/storage/x"


@pytest.mark.parametrize(
    ("query", "sent"), [("", "?token=civ_top-secret"), ("?token=users-own", "?token=users-own")]
)
async def test_civitai_token_is_sent_but_never_recorded(
    place: Place, query: str, sent: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    place.civitai.replies["/api/download/models/77"] = Reply(body=CONTENT)

    answer = await place.install(f"{place.civitai.url}/api/download/models/77{query}", "x.safetensors")

    assert answer.status == 200, answer.text
    assert [r.target for r in place.civitai.requests] == [f"/api/download/models/77{sent}"]
    everything = answer.text + json.dumps(manifest(place)) + caplog.text
    assert "token=" not in everything
    assert "users-own" not in everything
    assert "secret" not in everything


async def test_failed_download_into_a_new_folder_does_not_leave_the_folder(place: Place) -> None:
    answer = await place.install(
        f"{place.hub.url}/o/r/resolve/main/x.safetensors", "new/folder/x.safetensors"
    )

    assert answer.status == 404
    assert os.listdir(place.directory) == []


async def test_leftover_of_a_killed_server_does_not_stop_an_install(place: Place) -> None:
    place.write("x.safetensors.part", b"old")
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(body=CONTENT)

    answer = await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors")

    assert answer.status == 200, answer.text
    assert not (place.directory / "x.safetensors.part").exists()


@pytest.mark.parametrize("body", [{}, {"url": 7}, {"url": None}, {"url": "https://hf.co/x", "filename": 7}])
async def test_malformed_request_is_a_validation_problem(place: Place, body: Any) -> None:
    answer = await place.client.call("POST", "/api/v1/loras", json_body=body)

    assert answer.status == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"


# Downloading by a service's own terms, and provenance


async def fetch(place: Place, **body: Any) -> Answer:
    return await place.client.call("POST", "/api/v1/lora/download", json_body=body)


async def test_hub_file_is_downloaded_by_repository_and_path(place: Place) -> None:
    place.hub.replies["/own/repo/resolve/main/dir/my%20x.safetensors"] = Reply(body=CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()

    answer = await fetch(
        place,
        source="huggingface",
        repo_id="own/repo",
        hf_filename="dir/my x.safetensors",
        subfolder="styles",
        expected_sha256=digest.upper(),
    )

    assert (answer.status, answer.json()) == (
        200,
        {
            "filename": "my x.safetensors",
            "path": str(place.directory / "styles" / "my x.safetensors"),
            "sha256": digest,
            "size_bytes": len(CONTENT),
        },
    )
    provenance = manifest(place)["styles/my x.safetensors"]["provenance"]
    assert (provenance["repo_id"], provenance["hf_filename"]) == ("own/repo", "dir/my x.safetensors")


async def test_civitai_file_is_downloaded_by_version(place: Place) -> None:
    files = {"files": [{"name": "style.safetensors"}]}
    place.civitai.replies["/api/v1/model-versions/77"] = Reply(body=json.dumps(files).encode())
    place.civitai.replies["/api/download/models/77"] = Reply(body=CONTENT)

    answer = await fetch(place, source="civitai", model_id="5", version_id="77", civitai_token="users-own")

    provenance = manifest(place)["style.safetensors"]["provenance"]
    assert answer.status == 200, answer.text
    assert place.civitai.requests[-1].target == "/api/download/models/77?token=users-own"
    assert (provenance["model_id"], provenance["version_id"]) == ("5", "77")
    assert "users-own" not in json.dumps(provenance)


async def test_file_with_another_hash_is_not_kept(place: Place) -> None:
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(body=CONTENT)

    answer = await fetch(
        place, source="huggingface", repo_id="o/r", hf_filename="x.safetensors", expected_sha256="00" * 32
    )

    assert answer.status == 400
    assert "SHA-256" in answer.json()["detail"]
    assert os.listdir(place.directory) == []


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"source": "huggingface", "repo_id": "o/r"}, "needs repo_id and hf_filename"),
        ({"source": "civitai", "model_id": "5"}, "needs version_id"),
        ({"source": "url"}, "needs url"),
        ({"source": "civitai", "version_id": "7/../../x"}, "must be a number"),
        ({"source": "huggingface", "repo_id": "../..", "hf_filename": "x.safetensors"}, "owner/name"),
        ({"source": "huggingface", "repo_id": "o/r/x", "hf_filename": "x.safetensors"}, "owner/name"),
        ({"source": "huggingface", "repo_id": "o/r", "hf_filename": "x.pt"}, "not a .safetensors file"),
        ({"source": "url", "url": "http://example.com/x.safetensors"}, "huggingface.co"),
        ({"source": "url", "url": "file:///x.safetensors"}, "huggingface.co"),
        ({"source": "url", "url": "https://127.0.0.1/x.safetensors"}, "private network"),
        ({"source": "url", "url": "https://[::1]/x.safetensors"}, "private network"),
        ({"source": "url", "url": "https://169.254.169.254/x.safetensors"}, "private network"),
        ({"source": "url", "url": "https://localhost/x.safetensors"}, "private network"),
        (
            {"source": "huggingface", "repo_id": "o/r", "hf_filename": "x.safetensors", "subfolder": "../up"},
            "Invalid filename",
        ),
    ],
)
async def test_unusable_download_request_is_refused(place: Place, body: dict[str, Any], detail: str) -> None:
    answer = await fetch(place, **body)

    assert answer.status == 400, answer.text
    assert detail in answer.json()["detail"]
    assert os.listdir(place.directory) == []


async def test_unknown_source_is_a_validation_problem(place: Place) -> None:
    answer = await fetch(place, source="ftp")

    assert (answer.status, answer.json()["detail"][0]["type"]) == (422, "literal_error")


async def test_provenance_of_a_present_file_can_be_noted(place: Place) -> None:
    place.write("sub/mine.safetensors")
    body = {"source": "local", "url": "https://example.com/x?token=users-own&v=2"}

    answer = await place.client.call("PUT", "/api/v1/lora/sub/mine.safetensors/provenance", json_body=body)

    assert answer.status == 200, answer.text
    entry = answer.json()
    assert entry["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert entry["provenance"]["url"] == "https://example.com/x?v=2"
    assert manifest(place) == {"sub/mine.safetensors": entry}
    assert [f["provenance"] for f in await place.listed()] == [entry["provenance"]]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("nope.safetensors", 404),
        ("../secret.safetensors", 404),
        ("..%2Fsecret.safetensors", 404),
        ("a.pt", 400),
    ],
)
async def test_provenance_of_anything_else_is_refused(
    place: Place, name: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "models" / "secret.safetensors").write_bytes(CONTENT)
    place.write("a.pt")

    answer = await place.client.call("PUT", f"/api/v1/lora/{name}/provenance", json_body={"source": "local"})

    assert answer.status == status
    assert not (place.directory / "lora_manifest.json").exists()


# Deleting


async def test_deleted_file_and_its_manifest_entry_are_gone(place: Place) -> None:
    place.hub.replies["/o/r/resolve/main/x.safetensors"] = Reply(body=CONTENT)
    await place.install(f"{place.hub.url}/o/r/resolve/main/x.safetensors")

    answer = await place.delete("x")

    assert (answer.status, answer.json()) == (200, {"success": True, "message": "Deleted 'x'"})
    assert await place.listed() == []
    assert manifest(place) == {}


async def test_top_level_is_searched_before_folders_and_no_deeper(place: Place) -> None:
    top, sub, deep = (place.write(f"{folder}x.safetensors") for folder in ("", "sub/", "sub/deep/"))

    statuses = []
    left = []
    for _ in range(3):
        statuses.append((await place.delete("x")).status)
        left.append([path.exists() for path in (top, sub, deep)])

    assert statuses == [200, 200, 404]
    assert left == [[False, True, True], [False, False, True], [False, False, True]]


@pytest.mark.parametrize(
    "name", ["nope", "..", "..%2F..%2Fsecret", "%2Fetc%2Fpasswd", "*", "a%00", "sub%2Fx", "%20"]
)
async def test_name_that_is_no_file_is_not_found(place: Place, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(CONTENT)
    place.write("sub/x.safetensors")
    before = scan(tmp_path)

    answer = await place.delete(name)

    assert answer.status == 404
    assert scan(tmp_path) == before


async def test_shared_file_is_not_deleted(place: Place, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "s.safetensors").write_bytes(CONTENT)

    answer = await place.delete("s")

    assert answer.status == 403
    assert (tmp_path / "shared" / "s.safetensors").exists()


async def test_loaded_file_is_not_deleted(place: Place) -> None:
    path = place.write("x.safetensors")
    place.loaded.append(path)

    answer = await place.delete("x")

    assert answer.status == 409
    assert path.exists()


async def test_deleting_a_link_leaves_what_it_points_to(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.safetensors"
    target.write_bytes(CONTENT)
    (place.directory / "x.safetensors").symlink_to(target)

    answer = await place.delete("x")

    assert answer.status == 200
    assert target.exists()
    assert await place.listed() == []


# Public addresses


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_internet_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "::ffff:127.0.0.1",
        "ff02::1",
        "2002:7f00:0001::",
        "::ffff:10.0.0.1",
    ],
)
def test_other_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("make_url", [lambda s: s.url, lambda s: f"https://localhost:{s.port}"])
async def test_transport_does_not_connect_to_this_machine(make_url: Callable[[Service], str]) -> None:
    async with Service() as service, httpx.AsyncClient(transport=PublicTransport()) as client:
        with pytest.raises(AddressNotAllowedError):
            await client.get(make_url(service))

        assert service.requests == []
