"""Takes as files: what a player finds in them, whatever happened while they were written."""

import hashlib
import itertools
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import ApiError
from gateway.recording.take_writer import DISK_FULL, Limits
from gateway.recording.takes import INTERRUPTED, Takes
from gateway.stream.pictures.file_source import open_file
from tests.takes import SIZE, Writing, encoded, shown, steady


@pytest.fixture
def takes(tmp_path: Path) -> Takes:
    return Takes(tmp_path / "recordings", start_bytes=0)


def numbers(path: Path) -> list[int | None]:
    return [number for _, number in shown(path)]


def test_a_take_has_every_picture_at_its_time(takes: Takes) -> None:
    writing = Writing(takes).put(encoded(steady(60, start_s=7.5))).finish()

    take = takes.find(writing.take).describe()

    pictures = shown(takes.part(writing.take, 1))
    assert [number for _, number in pictures] == list(range(60))
    assert np.allclose([at_s for at_s, _ in pictures], steady(60), atol=0.002)
    assert (take["state"], take["error"], take["frames"], take["parts"]) == ("done", None, 60, 1)
    assert (take["width"], take["height"], take["codec"]) == (SIZE[1], SIZE[0], "H264")
    assert take["duration_s"] == pytest.approx(59 / 30, abs=0.01)
    assert take["size_bytes"] == takes.part(writing.take, 1).stat().st_size
    assert oct(takes.directory.stat().st_mode & 0o777) == "0o700"


def test_a_pause_is_a_gap(takes: Takes) -> None:
    times = steady(30) + steady(30, start_s=6.0)

    writing = Writing(takes).put(encoded(times, keys=(0, 30))).finish()

    at_s = [at for at, _ in shown(takes.part(writing.take, 1))]
    assert at_s == pytest.approx(times, abs=0.002)


def test_a_changing_frame_rate_is_kept(takes: Takes) -> None:
    times = steady(24, 12) + steady(60, 30, start_s=2.0)

    writing = Writing(takes).put(encoded(times)).finish()

    at_s = [at for at, _ in shown(takes.part(writing.take, 1))]
    assert at_s == pytest.approx(times, abs=0.002)


def test_another_size_begins_another_part_on_the_same_clock(takes: Takes) -> None:
    writing = Writing(takes).put(encoded(steady(30)))
    writing.put(encoded(steady(30, start_s=1.0), (160, 256), first=30)).finish()

    take = takes.find(writing.take).describe()

    first, second = (shown(takes.part(writing.take, number)) for number in (1, 2))
    assert [number for _, number in first + second] == list(range(60))
    assert (first[0][0], second[0][0]) == (0, 0)
    assert (take["parts"], take["frames"], take["state"]) == (2, 60, "done")
    part = next(line for line in takes.lines(writing.take) if line.get("event") == "part")
    assert (part["t"], part["part"], part["width"], part["height"]) == (1.0, 2, 256, 160)
    with pytest.raises(ApiError, match="no part 3"):
        takes.part(writing.take, 3)


def test_a_killed_server_loses_at_most_the_last_second_and_a_half(takes: Takes) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.takes", str(takes.directory), "250"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    take = process.stdout.readline().strip()
    takes.heal()  # another server starts meanwhile
    while_it_writes = [path.name for path in takes.directory.glob("*.mp4*")]
    process.send_signal(signal.SIGKILL)
    process.wait()

    takes.heal()

    found = takes.find(take).describe()
    read = numbers(takes.part(take, 1))
    assert while_it_writes == [f"{take}.mp4.part"]
    assert read == list(range(len(read)))
    assert len(read) >= 250 - 45
    assert (found["state"], found["error"], found["frames"]) == ("cut", INTERRUPTED, len(read))
    assert [path.name for path in takes.directory.glob("*.part")] == []


def test_a_line_that_was_cut_off_spoils_no_other(takes: Takes) -> None:
    writing = Writing(takes).put(encoded(steady(5))).finish()
    lines = takes.directory / f"{writing.take}.jsonl"
    (takes.directory / f"{writing.take}.mp4").rename(takes.directory / f"{writing.take}.mp4.part")
    head = lines.read_bytes().splitlines(keepends=True)[0]
    lines.write_bytes(head + b'{"t": 1.5, "chunk": 3, "se')

    takes.heal()

    assert [line.get("stream", line.get("event")) for line in takes.lines(writing.take)] == ["main", "end"]
    assert takes.find(writing.take).describe()["frames"] == 5


FULL_DISK = """
import json, sys
from pathlib import Path
from gateway.recording.take_writer import Limits
from gateway.recording.takes import Takes
from tests.takes import Writing, encoded, shown, steady

takes = Takes(Path(sys.argv[1]), start_bytes=0)
writing = Writing(takes, Limits(free_bytes=int(sys.argv[2])))
writing.put(encoded(steady(900), (320, 576), keys=range(0, 900, 30))).wait()
take = takes.find(writing.take).describe()
pictures = shown(takes.part(writing.take, 1))
writing.writer.put(*next(encoded([40.0])))
print(json.dumps([take, len(pictures), [n for _, n in pictures] == list(range(len(pictures)))]))
"""


@pytest.mark.parametrize("kept_free", [0, 1 << 20])
def test_a_full_disk_ends_the_take_with_what_was_recorded(kept_free: int, tmp_path: Path) -> None:
    """A real file system of 4 MB, in a namespace of its own. 0: a write fails; else the take ends before."""
    mount = f'mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh"]

    run = subprocess.run(
        [*command, sys.executable, "-c", FULL_DISK, str(tmp_path / "recordings"), str(kept_free)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    take, readable, in_order = json.loads(run.stdout)
    assert (take["state"], take["error"]) == ("cut", DISK_FULL)
    assert take["size_bytes"] > 2_000_000
    assert in_order
    assert readable > 60


@pytest.mark.parametrize("limits", [Limits(max_s=2.0, free_bytes=0), Limits(max_bytes=300_000, free_bytes=0)])
def test_a_take_ends_at_its_limit(limits: Limits, takes: Takes) -> None:
    writing = Writing(takes, limits)
    for start in range(0, 600, 30):  # the size is looked at once per second
        if writing.ended.wait(0.1):
            break
        writing.put(encoded(steady(30, start_s=start / 30), (320, 576), first=start))
    take = takes.find(writing.wait().take).describe()

    assert take["state"] == "cut"
    assert "that is allowed" in take["error"]
    assert len(shown(takes.part(writing.take, 1))) == take["frames"]


def test_a_disk_that_stands_still_costs_pictures_and_holds_up_nobody(takes: Takes) -> None:
    writing = Writing(takes, pipe=True)
    writing.put(encoded(steady(150), keys=(0, 120)))  # five seconds, of which two may wait
    wanted = writing.key_frames_wanted
    stored = takes.directory / "read"
    reader = threading.Thread(target=lambda: stored.write_bytes(writing.path.read_bytes()), daemon=True)
    reader.start()
    while writing.writer.written.frames < 60:
        assert not writing.ended.wait(0.01)
    writing.put(encoded(steady(30, start_s=5.0), first=150)).finish()
    reader.join()

    read = numbers(stored)
    assert wanted == 1
    assert read == [*range(len(read) - 30), *range(150, 180)]
    assert writing.writer.written.dropped == 180 - len(read)
    lines = (takes.directory / f"{writing.take}.jsonl").read_text().splitlines()
    assert [json.loads(line)["pictures"] for line in lines if '"drop"' in line] == [180 - len(read)]


def test_reference_images_are_named_with_their_hashes(takes: Takes, tmp_path: Path) -> None:
    image = tmp_path / "picture.png"
    image.write_bytes(b"content")
    writing = Writing(takes).put(encoded(steady(3)))
    values = {"vace_ref_images": [str(image), "gone.png"], "first_frame_image": str(image), "prompts": "x"}

    writing.writer.note({"t": 0.1, "chunk": 1, "set": values})
    writing.finish()

    line = next(line for line in takes.lines(writing.take) if "set" in line)
    assert line["set"] == values
    assert line["sha256"] == {str(image): hashlib.sha256(b"content").hexdigest()}


def test_what_follows_a_pause_may_be_shown_at_once(takes: Takes) -> None:
    writing = Writing(takes).put(encoded(steady(30), keys=range(30)))
    for number, (packet, size) in enumerate(encoded(steady(30, start_s=6.0), first=30, keys=range(30))):
        writing.writer.put(packet, size, follows=number == 0)
    writing.put(encoded(steady(5, start_s=9.0), (160, 256), first=60))
    writing.finish()

    first, second = (shown(takes.part(writing.take, number)) for number in (1, 2))
    part = next(line for line in takes.lines(writing.take) if line.get("event") == "part")
    assert [number for _, number in first + second] == list(range(65))
    assert np.allclose([at_s for at_s, _ in first], steady(60), atol=0.002)
    assert np.allclose([at_s for at_s, _ in second], steady(5), atol=0.002)
    assert part["t"] == pytest.approx(9.0 - 5 + 1 / 30, abs=0.07)  # five seconds less, as two pictures are
    assert takes.find(writing.take).describe()["duration_s"] == pytest.approx(part["t"] + 4 / 30, abs=0.01)


def test_a_take_without_a_picture_leaves_nothing(takes: Takes) -> None:
    Writing(takes).finish()

    assert list(takes.directory.iterdir()) == []
    assert takes.entries() == []


def test_takes_are_listed_newest_first_and_removed_whole(takes: Takes) -> None:
    first = Writing(takes).put(encoded(steady(3))).finish()
    second = Writing(takes).put(encoded(steady(3))).put(encoded([1.0], (160, 256))).finish()
    before = [take.id for take in takes.entries()]

    takes.delete(second.take)

    assert sorted(before) == sorted([first.take, second.take])
    assert [path.name.partition(".")[0] for path in takes.directory.iterdir()] == [first.take] * 2
    with pytest.raises(ApiError, match="not found"):
        takes.delete(second.take)


@pytest.mark.parametrize("name", ["../main", "main/../x", "", ".", "a" * 200, "MAIN", "main.mp4", "main\0"])
def test_a_name_never_leaves_the_directory(name: str, takes: Takes) -> None:
    outside = takes.directory.parent / "main.mp4"
    outside.write_bytes(b"")

    with pytest.raises(ApiError, match="not found"):
        takes.find(name)


def test_no_take_begins_without_room(tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="delete takes") as refused:
        Takes(tmp_path, start_bytes=1 << 60).begin("main")
    (tmp_path / "main-1.mp4").write_bytes(bytes(2000))
    with pytest.raises(ApiError, match="WANSTREAM_RECORDING_TOTAL_BYTES"):
        Takes(tmp_path, total_bytes=1000, start_bytes=0).begin("main")

    assert refused.value.status == 507


async def test_a_download_for_editors_has_its_index_at_the_start(takes: Takes) -> None:
    writing = Writing(takes).put(encoded(steady(90))).finish()
    path = takes.part(writing.take, 1)

    copy = await takes.remuxed(path)

    content = copy.read_bytes()
    assert b"moof" in path.read_bytes()
    assert b"moof" not in content
    assert content.index(b"moov") < content.index(b"mdat")
    assert shown(copy) == shown(path)
    takes.heal()  # removes what a download left
    assert not copy.exists()


async def test_a_take_that_was_cut_plays_as_a_source_again_and_again(takes: Takes) -> None:
    writing = Writing(takes).put(encoded(steady(60)))
    while writing.writer.written.frames < 60:
        assert not writing.ended.wait(0.01)
    cut = takes.directory / "cut.mp4"
    cut.write_bytes((takes.directory / f"{writing.take}.mp4.part").read_bytes())  # as a kill leaves it
    writing.finish()
    count = len(shown(cut))

    source = await open_file(cut, print)
    due = [at_s for at_s, _ in itertools.islice(source._frames(), 2 * count)]

    assert count >= 15
    assert np.allclose(np.diff(due), 1 / 30, atol=0.002)
