"""The command `wanstream-export`, as a user runs it."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from export.__main__ import main
from export.checkpoints.demo import ensure_demo_models
from export.onnx.store import EngineStore
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.engines.demo import DEMO
from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import ONNX_FILE
from tests.engines import small_options


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], env={"WANSTREAM_HOME": None})


@pytest.fixture
def root(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Path:
    """A home directory with the small checkpoints and their engines."""
    shutil.copytree(exported_engines[0], tmp_path / "home")
    return tmp_path / "home"


def test_small_weights_of_a_directory_take_the_place_of_random_ones(root: Path) -> None:
    result = run(*small_options(root))

    assert result.exit_code == 0, result.output
    assert "All 7 engines are there and undamaged." in result.output
    assert "Engine set 'demo_longlive_fp32_wan_window7' is complete" in result.output


def test_verify_counts_the_engines_of_a_good_export(root: Path) -> None:
    result = run(*small_options(root), "--verify")

    assert result.exit_code == 0, result.output
    assert result.output.startswith("7 engines are complete and undamaged: ")


def test_verify_names_the_file_that_is_wrong(root: Path, exported_engines: tuple[Path, EngineSet]) -> None:
    path = EngineStore(root / "engines").engine(exported_engines[1].text_kv) / ONNX_FILE
    path.write_bytes(path.read_bytes()[:-1])

    result = run(*small_options(root), "--verify")

    assert result.exit_code == 1
    assert f"'{path}' has " in result.stderr
    assert "Export it again: wanstream-export." in result.stderr


def test_a_demonstration_is_not_taken_for_an_export_of_real_weights(root: Path) -> None:
    result = run("longlive", "--home", root, "--window", 7, "--verify")

    assert result.exit_code == 1
    assert "There are no engines in" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["longlive", "--size", "320"], "'320' is not HEIGHTxWIDTH, such as 320x576."),
        (["longlive", "--size", "321x576"], "321x576 is no valid size: both must be multiples of 16"),
        (["longlive", "--size", "320x576"], "does not exist. Download the models: download_models"),
        (["passthrough"], "'passthrough' is not one of"),
        (
            ["longlive", "--demo", "--models", "."],
            "is no demonstration checkpoint. Use: --size HEIGHTxWIDTH.",
        ),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments, "--home", tmp_path)

    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("vae_type", ["tae", "lightvae", "lighttae"])
def test_an_autoencoder_that_the_demonstration_does_not_have_is_refused_with_what_it_has(
    tmp_path: Path, vae_type: str
) -> None:
    result = run("longlive", "--demo", "--vae-type", vae_type, "--home", tmp_path)

    assert result.exit_code == 1
    assert f"has no autoencoder '{vae_type}'. It has: wan. Use: --vae-type wan" in result.stderr


def test_a_checkpoint_that_was_not_downloaded_is_named_with_the_command(root: Path) -> None:
    """Whichever file of a pipeline it is: here the autoencoder's."""
    options = [option for option in small_options(root) if option != "--demo"]

    result = run(*options, "--vae-type", "tae")

    assert result.exit_code == 1
    assert "taew2_1.pth' does not exist. Download the models: download_models" in result.stderr


def test_demonstration_weights_are_the_same_every_time_and_written_once(tmp_path: Path) -> None:
    first, second = ensure_demo_models(tmp_path / "a"), ensure_demo_models(tmp_path / "b")

    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert {Path(pipeline.weights) for pipeline in TRANSFORMER_FILES.values()} < set(files)
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    (first / DEMO).write_text(json.dumps({"height": 64, "width": 64}))
    assert json.loads((ensure_demo_models(first) / DEMO).read_text())["height"] == 64
