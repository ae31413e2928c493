"""Assets: what is stored, listed and served, over real sockets, and that nothing else is touched."""

import asyncio
import io
import os
import shutil
import struct
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import numpy as np
import pytest
from PIL import Image

from gateway.files.assets import MAX_UPLOAD_BYTES, Assets
from gateway.routes.assets import assets_blueprint
from tests.directory_scan import scan
from tests.hostile_names import HOSTILE
from tests.serve_app import make_app, serving
from tests.server.client import Answer, HttpClient

URL = "/api/v1/assets"
FAKE_PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000020000000208020000").ljust(64, b"\0")


class Library:
    """A running server with an assets directory in `tmp_path / "home" / "assets"`."""

    def __init__(self, client: HttpClient, directory: Path) -> None:
        self.client = client
        self.directory = directory

    async def upload(self, name: str, body: bytes, **headers: str) -> Answer:
        return await self.client.call("POST", f"{URL}?filename={quote(name)}", body=body, headers=headers)

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        return await self.client.call(method, f"{URL}/{path}", headers=headers)

    async def listed(self, query: str = "") -> list[dict[str, Any]]:
        answer = await self.client.call("GET", f"{URL}{query}")
        assert answer.status == 200, answer.text
        assets: list[dict[str, Any]] = answer.json()["assets"]
        return assets


@asynccontextmanager
async def library_at(directory: Path, quota_bytes: int | None = None) -> AsyncIterator[Library]:
    async with serving(make_app(assets_blueprint(Assets(directory, quota_bytes)))) as client:
        yield Library(client, directory)


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    directory = tmp_path / "home" / "assets"
    directory.mkdir(parents=True)
    async with library_at(directory) as running:
        yield running


def picture(name: str, size: tuple[int, int] = (40, 20), mode: str = "RGB") -> bytes:
    output = io.BytesIO()
    formats = {"jpg": "JPEG"}
    suffix = name.rpartition(".")[2]
    Image.new(mode, size, "teal").save(output, formats.get(suffix, suffix.upper()))
    return output.getvalue()


def video(name: str, frames: int = 3) -> bytes:
    output = io.BytesIO()
    formats = {"mkv": "matroska"}
    suffix = name.rpartition(".")[2]
    codec = "libvpx" if suffix == "webm" else "libx264"
    with av.open(output, "w", format=formats.get(suffix, suffix)) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            image = np.full((48, 64, 3), 40 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return output.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header is right and whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + end


async def test_upload_answers_the_asset_that_is_listed_then(library: Library) -> None:
    before = time.time()
    answer = await library.upload("sub/My Pic.PNG", picture("a.png"))

    uploaded = answer.json()
    assert answer.status == 200
    assert uploaded | {"created_at": 0} == {
        "name": "My Pic",
        "path": str(library.directory / "sub" / "My Pic.PNG"),
        "size_mb": 0.0,
        "folder": "sub",
        "type": "image",
        "created_at": 0,
        "url": "/api/v1/assets/sub/My%20Pic.PNG",
        "problem": None,
    }
    assert before - 1 <= uploaded["created_at"] <= time.time() + 1
    assert await library.listed() == [{k: v for k, v in uploaded.items() if k != "problem"}]


@pytest.mark.parametrize(
    "name",
    ["a b.png", "狐.png", "ein schönes Bild.png", "100% #1 & more?.png", "سماء.png", "a" * 251 + ".png"],
)
async def test_name_of_any_script_can_be_uploaded_and_served(library: Library, name: str) -> None:
    body = picture("a.png")

    uploaded = await library.upload(name, body)
    served = await library.client.call("GET", uploaded.json()["url"])

    assert (uploaded.status, served.status) == (200, 200)
    assert (library.directory / name).read_bytes() == served.body == body


@pytest.mark.parametrize(
    ("name", "kind", "content_type"),
    [
        ("a.png", "image", "image/png"),
        ("a.jpg", "image", "image/jpeg"),
        ("a.JPEG", "image", "image/jpeg"),
        ("a.webp", "image", "image/webp"),
        ("a.bmp", "image", "image/bmp"),
        ("a.mp4", "video", "video/mp4"),
        ("a.avi", "video", "video/x-msvideo"),
        ("a.mov", "video", "video/quicktime"),
        ("a.mkv", "video", "video/x-matroska"),
        ("a.webm", "video", "video/webm"),
    ],
)
async def test_every_format_is_decoded_served_and_has_a_thumbnail(
    library: Library, name: str, kind: str, content_type: str
) -> None:
    body = (picture if kind == "image" else video)(name.lower())

    uploaded = await library.upload(name, body)
    served = await library.get(name)
    thumbnail = await library.get(f"{name}?thumbnail=1")

    assert uploaded.json()["type"] == kind
    assert uploaded.json()["problem"] is None
    assert (served.headers["content-type"], served.body) == (content_type, body)
    assert thumbnail.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.body)).size == ((40, 20) if kind == "image" else (64, 48))


async def test_thumbnail_of_a_large_picture_is_small_and_follows_the_file(library: Library) -> None:
    await library.upload("a.png", picture("a.png", (1000, 500), "RGBA"))
    first = await library.get("a.png?thumbnail=1")
    unchanged = await library.get("a.png?thumbnail=1", **{"If-None-Match": first.headers["etag"]})
    await library.upload("a.png", picture("a.png", (500, 1000)))
    second = await library.get("a.png?thumbnail=1")

    assert Image.open(io.BytesIO(first.body)).size == (256, 128)
    assert unchanged.status == 304
    assert Image.open(io.BytesIO(second.body)).size == (128, 256)


async def test_file_without_picture_has_no_thumbnail(library: Library) -> None:
    await library.upload("a.png", FAKE_PNG)

    answer = await library.get("a.png?thumbnail=1")

    assert answer.status == 404
    assert "no thumbnail of 'a.png'" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.png", FAKE_PNG),
        ("half.png", picture("a.png", (300, 300))[:-40]),
        ("a.mp4", bytes(100)),
        ("half.mp4", video("a.mp4")[:200]),
        ("other.mkv", video("a.mp4")),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"),
        ("a.ogg", bytes(100)),
    ],
)
async def test_file_that_cannot_be_decoded_is_stored_with_a_remark(
    library: Library, name: str, body: bytes
) -> None:
    answer = await library.upload(name, body)

    assert answer.status == 200
    assert answer.json()["problem"].startswith(f"'{name}' is stored, but it cannot be decoded")
    assert (library.directory / name).read_bytes() == body


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.png", b"not an image"),
        ("a.png", picture("a.jpg")),
        ("a.jpg", picture("a.png")),
        ("a.webp", b"RIFF1234WAVE"),
        ("a.bmp", b"<svg/>"),
        ("a.png", b"\x89PN"),
    ],
)
async def test_image_of_another_format_is_refused(library: Library, name: str, body: bytes) -> None:
    answer = await library.upload(name, body)

    assert answer.status == 400
    assert f"'{name}' is not image/" in answer.json()["detail"]
    assert os.listdir(library.directory) == []


async def test_image_of_too_many_pixels_is_refused_unread(library: Library) -> None:
    answer = await library.upload("a.png", png_of_size(30_000, 30_000))

    assert (answer.status, answer.json()["detail"]) == (
        400,
        "'a.png' has more than 64 megapixels: make it smaller.",
    )
    assert os.listdir(library.directory) == []


@pytest.mark.parametrize("name", ["x.txt", ".png", "png", "a.png.exe", "a.svg", "a.html", "", "sub/.mp4"])
async def test_other_suffix_is_refused_with_the_sorted_list(library: Library, name: str) -> None:
    answer = await library.upload(name, FAKE_PNG)

    assert answer.status == 400
    assert answer.json()["detail"] == (
        "Invalid file type. Allowed types: .avi, .bmp, .flac, .jpeg, .jpg, .mkv, .mov, .mp3, .mp4, .ogg, "
        ".png, .wav, .webm, .webp"
    )


async def test_missing_filename_is_a_validation_problem(library: Library) -> None:
    answer = await library.client.call("POST", URL, body=FAKE_PNG)

    assert answer.status == 422
    assert answer.json()["detail"] == [
        {"type": "missing", "loc": ["query", "filename"], "msg": "Field required", "input": None}
    ]


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_name_is_refused_and_nothing_is_written(library: Library, name: str) -> None:
    outside = library.directory.parent.parent / "outside"
    outside.mkdir()
    (library.directory / "link").symlink_to(outside)
    (library.directory / "linked.png").symlink_to(outside / "evil.png")
    (library.directory / "loop").symlink_to("loop")
    (library.directory / "existing.png").write_bytes(FAKE_PNG)
    (library.directory / "directory.png").mkdir()
    before = scan(library.directory.parent.parent)

    name = name.replace("{outside}", quote(str(outside), safe=""))
    answer = await library.client.call("POST", f"{URL}?filename={name}", body=FAKE_PNG)

    assert answer.status == 400, answer.text
    assert "Invalid filename" in answer.json()["detail"]
    assert scan(library.directory.parent.parent) == before


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("..%2Fsecret.png", 403),
        ("../secret.png", 403),
        ("%2e%2e/secret.png", 403),
        ("sub/../../secret.png", 403),
        ("..%2F..%2F..%2Fetc%2Fpasswd", 403),
        ("..%2Fassets-x%2Fa.png", 403),
        ("%2Fetc%2Fpasswd", 403),
        ("/etc/passwd", 403),
        ("link/secret.png", 403),
        ("linked.png", 403),
        ("loop/a.png", 403),
        ("a%00.png", 403),
        ("nope.png", 404),
        ("", 404),
        ("sub", 404),
        ("sub/", 404),
        ("directory.png", 404),
        ("notes.txt", 404),
        (".upload-1.png", 404),
        (".hidden/a.png", 404),
        ("..%5Csecret.png", 404),
        ("a" * 300 + ".png", 404),
        ("%ff.png", 404),
    ],
)
async def test_path_to_anything_but_an_asset_is_refused(library: Library, path: str, status: int) -> None:
    home = library.directory.parent
    for file in ("secret.png", "assets-x/a.png", "assets/notes.txt", "assets/.upload-1.png"):
        (home / file).parent.mkdir(exist_ok=True)
        (home / file).write_bytes(b"secret")
    (library.directory / "sub").mkdir()
    (library.directory / "directory.png").mkdir()
    (library.directory / ".hidden").mkdir()
    (library.directory / ".hidden" / "a.png").write_bytes(b"secret")
    (library.directory / "link").symlink_to(home)
    (library.directory / "linked.png").symlink_to(home / "secret.png")
    (library.directory / "loop").symlink_to("loop")

    answer = await library.get(path)

    assert answer.status == status, answer.text
    assert b"secret" not in answer.body


async def test_absolute_path_inside_the_directory_is_served(library: Library) -> None:
    path = (await library.upload("sub/a.png", FAKE_PNG)).json()["path"]

    assert (await library.get(path)).body == FAKE_PNG
    assert (await library.get(quote(path, safe=""))).body == FAKE_PNG


async def test_links_within_the_directory_are_listed_and_served(library: Library) -> None:
    await library.upload("a.png", FAKE_PNG)
    (library.directory / "b.png").symlink_to("a.png")
    (library.directory / "broken.png").symlink_to("gone.png")
    (library.directory / "out.png").symlink_to("/etc/passwd")

    assert sorted(a["name"] for a in await library.listed()) == ["a", "b"]
    assert (await library.get("b.png")).body == FAKE_PNG


async def test_directory_that_is_a_link_itself_works(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "assets").symlink_to("disk")

    async with library_at(tmp_path / "assets") as library:
        uploaded = (await library.upload("a.png", FAKE_PNG)).json()

        assert uploaded["path"] == str(tmp_path / "assets" / "a.png")
        assert (await library.listed())[0]["path"] == uploaded["path"]
        assert (await library.get(uploaded["path"])).body == FAKE_PNG


async def test_missing_directory_lists_nothing_and_is_created_by_an_upload(tmp_path: Path) -> None:
    async with library_at(tmp_path / "later" / "assets") as library:
        before = await library.listed()
        await library.upload("a.png", FAKE_PNG)

        assert before == []
        assert len(await library.listed()) == 1


async def test_same_name_replaces_the_file(library: Library) -> None:
    await library.upload("v.mp4", bytes(100))
    answer = await library.upload("v.mp4", bytes(2 << 20))

    assert answer.json()["size_mb"] == 2.0
    assert [(a["name"], a["size_mb"]) for a in await library.listed()] == [("v", 2.0)]


async def test_refused_upload_leaves_the_old_file(library: Library) -> None:
    await library.upload("a.png", FAKE_PNG)
    await library.upload("a.png", b"not an image")

    assert (await library.get("a.png")).body == FAKE_PNG


async def test_empty_body_is_refused(library: Library) -> None:
    answer = await library.upload("e.png", b"")

    assert answer.status == 400
    assert "empty" in answer.json()["detail"]
    assert os.listdir(library.directory) == []


async def test_uploads_beyond_the_quota_are_refused(tmp_path: Path) -> None:
    async with library_at(tmp_path, quota_bytes=1_000_000) as library:
        first = await library.upload("a.mp4", bytes(600_000))
        second = await library.upload("b.mp4", bytes(600_000))
        unknown_length = await library.client.call(
            "POST",
            f"{URL}?filename=b.mp4",
            body=b"927C0\r\n" + bytes(600_000) + b"\r\n0\r\n\r\n",
            headers={"Transfer-Encoding": "chunked"},
        )
        in_its_place = await library.upload("a.mp4", bytes(900_000))
        small = await library.upload("c.mp4", bytes(100_000))

    assert [first.status, in_its_place.status, small.status] == [200, 200, 200]
    assert [second.status, unknown_length.status] == [507, 507]
    assert "WANSTREAM_ASSETS_QUOTA_MB" in second.json()["detail"]
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "c.mp4"]


async def test_simultaneous_uploads_keep_to_the_quota(tmp_path: Path) -> None:
    async with library_at(tmp_path, quota_bytes=1_000_000) as library:
        answers = await asyncio.gather(*(library.upload(f"{i}.mp4", bytes(400_000)) for i in range(4)))

    assert sorted(answer.status for answer in answers) == [200, 200, 507, 507]
    assert len(os.listdir(tmp_path)) == 2


async def test_some_of_the_disk_is_left_to_others(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own disk cannot be filled for a test."""
    usage = shutil.disk_usage(library.directory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=(1 << 30) + 500_000))

    small = await library.upload("a.mp4", bytes(400_000))
    large = await library.upload("b.mp4", bytes(600_000))

    assert (small.status, large.status) == (200, 507)
    assert "MB left for files; remove some from" in large.json()["detail"]
    assert os.listdir(library.directory) == ["a.mp4"]


async def test_exactly_50_mib_are_accepted(library: Library) -> None:
    answer = await library.upload("big.mp4", bytes(MAX_UPLOAD_BYTES))

    assert (answer.status, answer.json()["size_mb"]) == (200, 50.0)


async def test_one_byte_more_is_refused(library: Library) -> None:
    answer = await library.upload("big.mp4", bytes(MAX_UPLOAD_BYTES + 1))

    assert (answer.status, answer.json()["detail"]) == (413, "File size exceeds maximum of 50MB")
    assert os.listdir(library.directory) == []


async def test_announced_size_is_refused_before_any_data_comes(library: Library) -> None:
    reader, writer = await _connect(library)
    writer.write(
        f"POST {URL}?filename=a.mp4 HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".encode()
    )

    status = await reader.readline()
    writer.close()

    assert b" 413 " in status


async def test_endless_upload_of_unknown_size_is_cut_off(library: Library) -> None:
    reader, writer = await _connect(library)
    head = f"POST {URL}?filename=a.mp4 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    status = asyncio.create_task(reader.readline())
    for _ in range(200):  # MiB
        if status.done() or writer.is_closing():
            break
        try:
            writer.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
            # The server may answer and read no more: then there is no room to write, for ever.
            drained = asyncio.ensure_future(writer.drain())
            await asyncio.wait({drained, status}, return_when=asyncio.FIRST_COMPLETED)
            if drained.done():
                await drained
            drained.cancel()
        except ConnectionError:
            break

    assert b" 413 " in await status
    writer.close()
    assert os.listdir(library.directory) == []


async def test_upload_that_breaks_off_leaves_nothing(library: Library) -> None:
    _, writer = await _connect(library)
    head = f"POST {URL}?filename=a.mp4 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    writer.write(head.encode() + bytes(500_000))
    await writer.drain()
    for _ in range(200):
        if os.listdir(library.directory):
            break
        await asyncio.sleep(0.01)
    begun = os.listdir(library.directory)
    writer.transport.abort()
    for _ in range(200):
        if not os.listdir(library.directory):
            break
        await asyncio.sleep(0.01)

    assert len(begun) == 1
    assert await library.listed() == []
    assert os.listdir(library.directory) == []


async def test_unfinished_upload_is_neither_listed_nor_served(library: Library) -> None:
    (library.directory / ".upload-1.png").write_bytes(FAKE_PNG)

    assert await library.listed() == []
    assert (await library.get(".upload-1.png")).status == 404


async def test_simultaneous_uploads_of_one_name_leave_one_whole_file(library: Library) -> None:
    bodies = [bytes([i]) * 300_000 for i in range(3)]  # the clients' threads are the server's, too

    answers = await asyncio.gather(*(library.upload("v.mp4", body) for body in bodies))

    assert {a.status for a in answers} == {200}
    assert (library.directory / "v.mp4").read_bytes() in bodies
    assert os.listdir(library.directory) == ["v.mp4"]


async def test_leftovers_of_a_dead_process_are_removed_later(tmp_path: Path) -> None:
    old, new, other = (tmp_path / n for n in (".upload-old.mp4", ".upload-new.mp4", "old.mp4"))
    for path in (old, new, other):
        path.write_bytes(b"x")
    for path in (old, other):
        os.utime(path, (1, 1))

    Assets(tmp_path).remove_stale()

    assert (old.exists(), new.exists(), other.exists()) == (False, True, True)


async def test_list_is_filtered_by_type_and_ordered_newest_first(library: Library) -> None:
    for name in ("one.mp4", "sub/two.png", "three.MP4", "four.wav"):
        await library.upload(name, FAKE_PNG)
        await asyncio.sleep(0.02)
    (library.directory / "notes.txt").write_text("no asset")

    assert [a["name"] for a in await library.listed()] == ["four", "three", "two", "one"]
    assert [a["name"] for a in await library.listed("?type=video")] == ["three", "one"]
    assert [a["name"] for a in await library.listed("?type=image")] == ["two"]
    assert [a["name"] for a in await library.listed("?type=audio")] == ["four"]


@pytest.mark.parametrize("kind", ["zzz", "", "IMAGE"])
async def test_unknown_type_is_a_validation_problem(library: Library, kind: str) -> None:
    answer = await library.client.call("GET", f"{URL}?type={kind}")

    assert answer.status == 422
    assert answer.json()["detail"] == [
        {
            "type": "literal_error",
            "loc": ["query", "type"],
            "msg": "Input should be 'image', 'video' or 'audio'",
            "input": kind,
            "ctx": {"expected": "'image', 'video' or 'audio'"},
        }
    ]


async def test_served_file_has_the_headers_that_players_need(library: Library) -> None:
    await library.upload("v.mp4", bytes(1000))

    answer = await library.get("v.mp4")

    expected = {
        "content-type": "video/mp4",
        "content-length": "1000",
        "accept-ranges": "bytes",
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
    }
    assert {k: v for k, v in answer.headers.items() if k in expected} == expected
    assert {"etag", "last-modified"} <= answer.headers.keys()


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "body"),
    [
        ("bytes=0-3", 206, "bytes 0-3/10", b"0123"),
        ("bytes=4-", 206, "bytes 4-9/10", b"456789"),
        ("bytes=-2", 206, "bytes 8-9/10", b"89"),
        ("bytes=8-100", 206, "bytes 8-9/10", b"89"),
        ("bytes=10-", 416, None, None),
        ("bytes=-100", 206, "bytes 0-9/10", b"0123456789"),
        ("bytes=-0", 200, None, b"0123456789"),
        ("bytes=5-2", 200, None, b"0123456789"),
        ("bytes=a-b", 200, None, b"0123456789"),
        ("bytes=0-1,3-4", 200, None, b"0123456789"),
        ("items=0-1", 200, None, b"0123456789"),
    ],
)
async def test_ranges(
    library: Library, wanted: str, status: int, content_range: str | None, body: bytes | None
) -> None:
    await library.upload("v.mp4", b"0123456789")

    answer = await library.get("v.mp4", Range=wanted)

    assert (answer.status, answer.headers.get("content-range")) == (status, content_range)
    assert body is None or (answer.body, answer.headers["content-length"]) == (body, str(len(body)))


async def test_unchanged_file_is_not_sent_again(library: Library) -> None:
    await library.upload("v.mp4", b"0123456789")
    headers = (await library.get("v.mp4")).headers

    by_tag = await library.get("v.mp4", **{"If-None-Match": headers["etag"]})
    by_date = await library.get("v.mp4", **{"If-Modified-Since": headers["last-modified"]})
    await library.upload("v.mp4", b"changed")
    changed = await library.get("v.mp4", **{"If-None-Match": headers["etag"]})

    assert [(a.status, a.body) for a in (by_tag, by_date)] == [(304, b""), (304, b"")]
    assert (changed.status, changed.body) == (200, b"changed")


async def test_head_answers_the_headers_without_the_file(library: Library) -> None:
    await library.upload("v.mp4", b"0123456789")

    answer = await library.get("v.mp4", method="HEAD")

    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "10", b"")


async def _connect(library: Library) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = library.client.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))
