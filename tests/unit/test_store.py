"""What lies in the directory of engines is complete; everything else is refused with a reason."""

import contextlib
import errno
import multiprocessing
import multiprocessing.synchronize
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from export.__main__ import main
from export.onnx.jobs import Request
from export.onnx.run import export_pipeline, exporter_version, made_otherwise
from export.onnx.store import EngineStore, Resources, StoreError
from export.onnx.verify import verify_set
from streaming.checkpoints.files import CheckpointError
from streaming.engines.engine_set import SET, EngineSet, read_engine_set
from streaming.engines.manifest import MANIFEST, ONNX_FILE, read_manifest
from streaming.engines.records import EngineError
from streaming.engines.served import InProcess, open_model
from streaming.errors import WanstreamError
from streaming.specs import LONGLIVE
from tests.engines import SIZE, small_options, small_request


@pytest.fixture
def root(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(exported_engines[0], tmp_path / "copy")
    return tmp_path / "copy"


def export_again(root: Path) -> list[str]:
    """Lines that a second export says."""
    lines: list[str] = []
    export_pipeline(small_request(root / "models"), EngineStore(root / "engines"), lines.append)
    return lines


def test_every_engine_of_an_exported_set_is_verified(exported_engines: tuple[Path, EngineSet]) -> None:
    root, engines = exported_engines
    store = EngineStore(root / "engines")

    manifests = [store.verified(name) for name in engines.engines()]

    assert read_engine_set(store.sets / engines.name) == engines
    assert {m.kind for m in manifests} == {
        "text_encoder",
        "text_kv",
        "transformer",
        "vae_encoder_first",
        "vae_encoder_next",
        "vae_decoder_first",
        "vae_decoder_next",
    }
    assert all(m.parity is not None and m.parity < 1e-4 for m in manifests)
    transformer = manifests[-1]
    assert (transformer.tokens_per_frame, transformer.cache_tokens) == (20, 80)
    assert transformer.source_checkpoints[0].file == "longlive_base.pt"


def test_a_second_export_keeps_what_is_there(root: Path) -> None:
    said = export_again(root)

    assert "All 7 engines are there and undamaged." in said


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda d: (d / ONNX_FILE).unlink(), id="no graph"),
        pytest.param(lambda d: (d / f"{ONNX_FILE}.data").write_bytes(b""), id="empty weights"),
        pytest.param(lambda d: (d / MANIFEST).write_text("{"), id="half a manifest"),
        pytest.param(lambda d: shutil.rmtree(d), id="nothing"),
    ],
)
def test_a_damaged_engine_is_exported_again_and_the_others_are_kept(root: Path, damage: object) -> None:
    store = EngineStore(root / "engines")
    engines = read_engine_set(next(store.sets.iterdir()))
    assert callable(damage)
    damage(store.engine(engines.text_kv))

    said = export_again(root)

    assert any(line.startswith("1 engines to export, 6 are there") for line in said), said
    assert store.verified(engines.text_kv).kind == "text_kv"


def test_changed_bytes_of_the_same_size_are_noticed(root: Path) -> None:
    store = EngineStore(root / "engines")
    name = read_engine_set(next(store.sets.iterdir())).text_kv
    path = store.engine(name) / f"{ONNX_FILE}.data"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)

    with pytest.raises(EngineError, match=r"content of '.*model\.onnx\.data' has changed since the export"):
        store.verified(name)


def test_an_engine_under_another_ones_name_is_noticed(root: Path) -> None:
    store = EngineStore(root / "engines")
    engines = read_engine_set(next(store.sets.iterdir()))
    shutil.rmtree(store.models / engines.text_kv)
    shutil.copytree(store.models / engines.text_encoder, store.models / engines.text_kv)

    with pytest.raises(EngineError, match=f"holds engine '{engines.text_encoder}', not '{engines.text_kv}'"):
        store.verified(engines.text_kv)


def write_and_fail(store: EngineStore, error: BaseException) -> None:
    """Write half of a directory `engine` and fail."""
    with store.writing(), store.replacing(store.models / "engine") as partial:
        (partial / "file").write_text("half")
        raise error


def test_a_directory_that_is_not_finished_never_gets_its_name(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)

    with pytest.raises(KeyboardInterrupt):
        write_and_fail(store, KeyboardInterrupt())

    assert list(store.models.iterdir()) == []
    assert not (tmp_path / ".partial").exists()


def test_a_full_disk_leaves_the_old_directory(tmp_path: Path) -> None:
    store = EngineStore(tmp_path)
    with store.writing(), store.replacing(store.models / "engine") as partial:
        (partial / "file").write_text("old")

    with pytest.raises(StoreError, match=r"could not be written \(.*No space left on device"):
        write_and_fail(store, OSError(errno.ENOSPC, "No space left on device"))

    assert (store.models / "engine" / "file").read_text() == "old"


def hold(root: Path, held: multiprocessing.synchronize.Event) -> None:
    """Begin an engine, and stay in it until killed."""
    store = EngineStore(root)
    with store.writing(), store.replacing(store.models / "engine") as partial:
        (partial / "file").write_text("half")
        held.set()
        time.sleep(60)


def test_two_exports_at_once_are_refused_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held))
    process.start()
    try:
        assert held.wait(60), "the other export did not begin"
        with pytest.raises(StoreError, match="Another export is writing"), EngineStore(tmp_path).writing():
            pass
    finally:
        process.kill()
        process.join()

    with EngineStore(tmp_path).writing():
        assert list((tmp_path / "models").iterdir()) == []
        assert not (tmp_path / ".partial").exists()


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (Resources(disk=1000, memory=None), "of disk; 1.0 kB are free"),
        (Resources(disk=1 << 40, memory=1000), "of memory; 1.0 kB are free"),
    ],
)
def test_an_export_that_cannot_end_well_does_not_start(tmp_path: Path, left: Resources, message: str) -> None:
    request = small_request(tmp_path / "models")
    store = EngineStore(tmp_path / "engines")

    with pytest.raises(StoreError, match=message):
        export_pipeline(request, store, lambda line: None, resources=lambda directory: left)

    assert list(store.models.iterdir()) == list(store.sets.iterdir()) == []


def test_a_truncated_checkpoint_is_named_before_anything_is_written(tmp_path: Path) -> None:
    request = small_request(tmp_path / "models")
    path = tmp_path / "models" / "LongLive-1.3B" / "models" / "longlive_base.pt"
    path.write_bytes(path.read_bytes()[:1000])
    store = EngineStore(tmp_path / "engines")

    with pytest.raises(CheckpointError, match=r"longlive_base\.pt' cannot be read"):
        export_pipeline(request, store, lambda line: None)

    assert list(store.models.iterdir()) == []


def test_a_config_of_other_sizes_than_the_weights_is_noticed(tmp_path: Path) -> None:
    request = small_request(tmp_path / "models")
    config = tmp_path / "models" / "Wan2.1-T2V-1.3B" / "config.json"
    config.write_text(config.read_text().replace('"ffn_dim": 24', '"ffn_dim": 32'))
    store = EngineStore(tmp_path / "engines")

    with pytest.raises(CheckpointError, match="does not fit the model"):
        export_pipeline(request, store, lambda line: None)

    assert not any("transformer" in path.name for path in store.models.iterdir())
    assert list(store.sets.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ((100, 128),)}, "100x128 is no valid size"),
        ({"window": 6}, "--window 6 is too small"),
        ({"pipeline": "passthrough"}, "'passthrough' cannot be exported"),
        ({"pipeline": "streamdiffusionv2", "vae_type": "tae"}, "has no VAE 'tae'. Choose: wan"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    request = replace(Request("longlive", tmp_path, (SIZE,)), **change)  # type: ignore[arg-type]

    with pytest.raises(WanstreamError, match=message):
        _ = request.loop


def test_what_an_engine_is_made_from_decides_about_its_name(exported_engines: tuple[Path, EngineSet]) -> None:
    root, engines = exported_engines
    manifest = read_manifest(EngineStore(root / "engines").engine(engines.transformer))

    assert manifest.name == f"longlive_transformer_fp32_{manifest.fingerprint[:8]}"


@pytest.mark.parametrize(
    ("part", "other", "fact"),
    [
        ("transformer", "text_kv", "kind is text_kv, not transformer"),
        ("text_encoder", "text_kv", "kind is text_kv, not text_encoder"),
    ],
)
def test_a_set_that_names_a_wrong_engine_is_not_opened(root: Path, part: str, other: str, fact: str) -> None:
    store = EngineStore(root / "engines")
    directory = next(store.sets.iterdir())
    engines = read_engine_set(directory)
    wrong = engines.model_copy(update={part: getattr(engines, other)})
    (directory / SET).write_text(wrong.model_dump_json())

    with pytest.raises(EngineError, match=f"is not the one that is needed: its {fact}"):
        open_model(directory, LONGLIVE, InProcess(store.models))


def test_autoencoders_of_another_size_are_not_opened(root: Path) -> None:
    store = EngineStore(root / "engines")
    directory = next(store.sets.iterdir())
    text = (directory / SET).read_text()
    (directory / SET).write_text(text.replace('"height": 64', '"height": 96'))

    with pytest.raises(EngineError, match="its height is 64, not 96"):
        open_model(directory, LONGLIVE, InProcess(store.models))


def export_command(root: Path, *options: object) -> list[str]:
    return [sys.executable, "-m", "export", *map(str, (*small_options(root), *options))]


def test_a_killed_export_leaves_no_engine_and_the_next_one_goes_on(root: Path) -> None:
    store = EngineStore(root / "engines")
    engines = read_engine_set(next(store.sets.iterdir()))
    for name in (engines.text_kv, engines.text_encoder):
        shutil.rmtree(store.models / name)
    command = export_command(root)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None and not any((root / "engines").glob(".partial/*/1")):
            time.sleep(0.01)
        assert process.poll() is None, "the export ended before it could be killed"
        helpers = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # it alone, as the kernel does where memory is short
        process.wait()
        _, alive = psutil.wait_procs(helpers, timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    assert len(helpers) >= min(2, len(os.sched_getaffinity(0))) - 1  # one core exports alone
    assert alive == []
    assert not (store.models / engines.text_encoder).exists()
    with pytest.raises(EngineError, match="There is no engine in"):
        verify_set(store, engines.name)
    assert any(line.startswith("2 engines to export, 5 are there") for line in export_again(root))
    assert len(verify_set(store, engines.name)) == 7


def test_a_file_system_that_takes_no_more_is_named_and_nothing_half_made_is_left(root: Path) -> None:
    store = EngineStore(root / "engines")
    name = read_engine_set(next(store.sets.iterdir())).vae[0].decoder_first
    shutil.rmtree(store.models / name)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
    try:
        with pytest.raises(StoreError, match=r"could not be written \(.*File too large.*\)\. Check the disk"):
            export_again(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    assert not (store.models / name).exists()
    assert not (root / "engines" / ".partial").exists()


def test_an_export_beside_another_one_is_told_to_wait(root: Path) -> None:
    with EngineStore(root / "engines").writing():
        done = CliRunner().invoke(main, export_command(root)[3:])

    assert done.exit_code == 1
    assert "Another export is writing to" in done.stderr


def test_pruning_removes_what_no_set_names_and_nothing_else(root: Path) -> None:
    store = EngineStore(root / "engines")
    (engine_set,) = map(read_engine_set, store.sets.iterdir())
    shutil.copytree(store.models / engine_set.text_kv, store.models / "old_engine")
    (store.models / "foreign" / "1").mkdir(parents=True)
    lines: list[str] = []

    export_pipeline(small_request(root / "models"), store, lines.append, prune=True)

    (removed,) = (line for line in lines if line.startswith("Removed"))
    assert "old_engine, which no set names" in removed
    assert {path.name for path in store.models.iterdir()} == {*engine_set.engines(), "foreign"}
    assert len(verify_set(store, engine_set.name)) == len(engine_set.engines())


def test_nothing_is_pruned_while_a_set_cannot_be_read(root: Path) -> None:
    store = EngineStore(root / "engines")
    directory = next(store.sets.iterdir())
    before = {path.name for path in store.models.iterdir()}
    (directory / SET).write_text("{}")

    with store.writing(), pytest.raises(StoreError, match="Nothing was removed"):
        store.prune()

    assert {path.name for path in store.models.iterdir()} == before


def test_engines_of_another_exporter_are_told_apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of PyTorch is one of the things that make another exporter."""
    store = EngineStore(root / "engines")
    name = next(store.sets.iterdir()).name
    before, mine = exporter_version(), made_otherwise(store, name)

    monkeypatch.setattr("export.onnx.run.version", lambda package: "99.0")
    exporter_version.cache_clear()
    try:
        theirs = made_otherwise(store, name)
    finally:
        exporter_version.cache_clear()

    assert mine is None
    assert theirs == before
    assert made_otherwise(store, "no_such_set") is None
