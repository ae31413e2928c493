"""What TensorRT is told to build follows the manifest; nothing here runs TensorRT."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.build_cli import main
from export.engine_build import ShapeRange, build_plan, trtexec_command
from export.store import EngineStore
from streaming.engine_set import EngineSet
from streaming.manifest import AxisRange
from tests.unit.test_repository import MANIFEST, TWO_PROFILES


def test_a_dynamic_input_has_its_shapes_in_every_profile(tmp_path: Path) -> None:
    other = {"T": AxisRange(min=6, opt=18, max=24)}
    manifest = TWO_PROFILES.model_copy(update={"profiles": (MANIFEST.profiles[0], other)})

    plan = build_plan(tmp_path, manifest, tmp_path / "timing.cache")

    assert plan.profiles == (
        {"tokens": ShapeRange(min=(1, 4, 64), opt=(1, 12, 64), max=(1, 16, 64))},
        {"tokens": ShapeRange(min=(1, 6, 64), opt=(1, 18, 64), max=(1, 24, 64))},
    )


def test_precision_is_left_to_the_graph(tmp_path: Path) -> None:
    plan = build_plan(tmp_path, MANIFEST, tmp_path / "timing.cache", refittable=True)

    assert plan.flags == ("STRONGLY_TYPED", "REFIT")
    command = trtexec_command(plan)
    assert {"--stronglyTyped", "--refit", "--memPoolSize=workspace:8192M"} <= set(command)
    assert not {"--fp16", "--bf16", "--fp8", "--int8", "--best"} & set(command)
    assert "--optShapes=tokens:1x12x64" in command


def run(exported_engines: tuple[Path, EngineSet], *options: str) -> str:
    root, engines = exported_engines
    result = CliRunner().invoke(main, [engines.name, "--engines", str(root / "engines"), *options])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_dry_run_names_every_engine_of_the_set(exported_engines: tuple[Path, EngineSet]) -> None:
    plans = json.loads(run(exported_engines, "--dry-run", "--level", "5"))

    store = EngineStore(exported_engines[0] / "engines")
    assert [plan["engine"] for plan in plans] == list(exported_engines[1].engines())
    assert all(Path(plan["onnx"]).is_file() for plan in plans)
    assert {plan["builder_optimization_level"] for plan in plans} == {5}
    assert plans[-1]["estimated_plan_bytes"] == store.verified(plans[-1]["engine"]).bytes
    assert "tensorrt" not in sys.modules


def test_one_command_per_engine_is_printed(exported_engines: tuple[Path, EngineSet]) -> None:
    commands = [shlex.split(line) for line in run(exported_engines, "--trtexec").splitlines()]

    assert len(commands) == 7
    assert all(command[0] == "trtexec" for command in commands)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nothing", "--dry-run"], "There are no engines in"), (["nothing"], "is not part of this version")],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, [*arguments, "--engines", str(tmp_path)])

    assert result.exit_code == 1
    assert message in result.stderr
