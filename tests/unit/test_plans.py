"""Which engines are Triton models of their own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from streaming.engine_set import EngineSet
from streaming.manifest import CONFIG, MANIFEST, beside, engine_directory
from streaming.plans import models_of
from streaming.records import EngineError

Change = Callable[[Path], None]


def served_by_tensorrt(engine: Path) -> None:
    (engine.parent / CONFIG).write_text('platform: "tensorrt_plan"\n')


def exported_long_ago(engine: Path) -> None:
    manifest = json.loads((engine / MANIFEST).read_text())
    del manifest["begins_streams"]
    (engine / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def models(exported_engines: tuple[Path, EngineSet], tmp_path: Path) -> Path:
    """The exported engines without their graphs."""
    root, _ = exported_engines
    shutil.copytree(
        root / "engines" / "models", tmp_path, ignore=shutil.ignore_patterns("*.onnx*"), dirs_exist_ok=True
    )
    return tmp_path


def test_a_graph_that_begins_a_stream_runs_with_the_one_that_goes_on(
    exported_engines: tuple[Path, EngineSet], models: Path
) -> None:
    _, engines = exported_engines
    vae = engines.vae[0]

    names = models_of(engines, models)

    assert set(engines.engines()) - set(names) == {vae.encoder_first, vae.decoder_first}
    assert names == tuple(name for name in engines.engines() if name in names)


@pytest.mark.parametrize("change", [served_by_tensorrt, exported_long_ago])
def test_it_is_a_model_of_its_own_where_the_other_one_cannot_run_it(
    change: Change, exported_engines: tuple[Path, EngineSet], models: Path
) -> None:
    _, engines = exported_engines
    change(engine_directory(models, engines.vae[0].decoder_next))

    names = models_of(engines, models)

    assert set(engines.engines()) - set(names) == {engines.vae[0].encoder_first}


def test_an_engine_is_found_beside_another_one_and_nowhere_else(tmp_path: Path) -> None:
    directory = engine_directory(tmp_path, "decoder")

    assert beside(directory, "encoder") == engine_directory(tmp_path, "encoder")
    for name in ("../secret", "/etc", "..", ""):
        with pytest.raises(EngineError, match="not the name of an engine"):
            beside(directory, name)
