"""The golden runner: what it finds, what it lets through, and what it says when numbers differ."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.golden import registry
from tests.golden.case import COMMITTED, REPOSITORY, GoldenCase, discover, golden_directory

META = {"kind": "wan.scheduler", "config": {}, "tolerance": {"atol": 0.1, "rtol": 0.0}}


def write_case(path: Path, contents: dict[str, Tensor], **meta: Any) -> GoldenCase:
    """A case at path (no suffix), two folders below tmp_path as in a golden directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(META | meta))
    save_file(contents, path.with_suffix(".safetensors"))
    return GoldenCase.read(path.with_suffix(".json"), path.parents[1])


def test_a_difference_names_case_tensor_and_worst_element(tmp_path: Path) -> None:
    case = write_case(tmp_path / "area" / "one", {"out.y": torch.zeros(2, 3)})
    actual = torch.zeros(2, 3)
    actual[0, 1], actual[1, 2] = 0.2, -0.5

    with pytest.raises(AssertionError) as error:
        case.assert_close("out.y", actual)

    message = str(error.value)
    assert "area/one: out.y: 2 of 6 elements" in message
    assert "worst at [1, 2]: actual -0.5, expected 0" in message
    assert "allowed 0.1" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_the_worst(bad: float, tmp_path: Path) -> None:
    case = write_case(tmp_path / "area" / "one", {"out.y": torch.zeros(3)})

    with pytest.raises(AssertionError, match=r"worst at \[1\]"):
        case.assert_close("out.y", torch.tensor([9.0, bad, 0.0]))


def test_values_inside_the_tolerance_pass(tmp_path: Path) -> None:
    case = write_case(
        tmp_path / "area" / "one",
        {"out.y": torch.tensor([1.0, 100.0])},
        tolerance={"atol": 0.1, "rtol": 0.01},
    )

    case.assert_close("out.y", torch.tensor([1.1, 101.0]))

    with pytest.raises(AssertionError, match="1 of 2"):
        case.assert_close("out.y", torch.tensor([1.2, 101.0]))


def test_integers_are_compared_exactly(tmp_path: Path) -> None:
    case = write_case(
        tmp_path / "area" / "one", {"out.i": torch.tensor([1, 2])}, tolerance={"atol": 9, "rtol": 9}
    )

    with pytest.raises(AssertionError, match="1 of 2"):
        case.assert_close("out.i", torch.tensor([1, 3]))


def test_another_shape_fails(tmp_path: Path) -> None:
    case = write_case(tmp_path / "area" / "one", {"out.y": torch.zeros(2, 3)})

    with pytest.raises(AssertionError, match=r"shape \[3, 2\], expected \[2, 3\]"):
        case.assert_close("out.y", torch.zeros(3, 2))


@pytest.mark.parametrize(("name", "atol"), [("out.a", 1), ("out.ab", 2), ("out.abc", 3), ("out.x", 0.5)])
def test_tolerance_by_name_goes_before_the_longest_prefix(name: str, atol: float, tmp_path: Path) -> None:
    overrides = {"out.a*": {"atol": 1.0}, "out.ab*": {"atol": 2.0}, "out.abc": {"atol": 3.0, "rtol": 1.0}}
    case = write_case(
        tmp_path / "area" / "one", {}, tolerance={"atol": 0.5, "rtol": 0.0, "per_tensor": overrides}
    )

    assert case.tolerance(name).atol == atol


def test_an_unknown_kind_fails_by_name(tmp_path: Path) -> None:
    case = write_case(tmp_path / "area" / "one", {}, kind="wan.telepathy")

    with pytest.raises(AssertionError, match=r"area/one: no replay for kind 'wan\.telepathy'"):
        registry.replay(case)


def test_an_expected_tensor_that_nobody_compares_fails(tmp_path: Path) -> None:
    source = load_file(COMMITTED / "wan" / "scheduler.safetensors")
    meta = json.loads((COMMITTED / "wan" / "scheduler.json").read_text())
    extra = {"step3.state.forgotten": torch.zeros(1)}
    case = write_case(tmp_path / "area" / "one", source | extra, **meta)

    with pytest.raises(AssertionError, match=r"did not compare step3\.state\.forgotten"):
        registry.replay(case)


def test_every_kind_is_either_replayed_or_known_to_wait() -> None:
    kinds = {case.kind for case in discover(golden_directory())}

    assert not registry.REPLAYS.keys() & registry.NOT_YET
    assert kinds - registry.REPLAYS.keys() <= registry.NOT_YET


def test_the_committed_subset_can_be_replayed_and_is_small() -> None:
    cases = discover(COMMITTED)

    assert {case.kind for case in cases} <= registry.REPLAYS.keys()
    assert sum(path.stat().st_size for path in COMMITTED.rglob("*")) < 8 * 2**20


def test_weights_come_from_the_named_case(tmp_path: Path) -> None:
    write_case(tmp_path / "area" / "source", {"weights.x.weight": torch.ones(2)}, kind="weights")

    case = write_case(tmp_path / "other" / "one", {}, weights_from="area/source")

    assert case.checkpoint().entries.keys() == {"x.weight"}


def test_a_missing_source_of_weights_is_named(tmp_path: Path) -> None:
    case = write_case(tmp_path / "area" / "one", {}, weights_from="area/nowhere")

    with pytest.raises(FileNotFoundError, match="area/nowhere"):
        case.checkpoint()


def run_golden(directory: Path, *options: str) -> tuple[int, str]:
    """`pytest tests/golden` on a directory, as anybody would call it."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/golden", "-v", "-p", "no:cacheprovider", *options],
        cwd=REPOSITORY,
        env=os.environ | {"WANSTREAM_GOLDEN": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def copy_case(source: str, target: Path, change: dict[str, Tensor] | None = None, **meta: Any) -> None:
    original = json.loads((COMMITTED / f"{source}.json").read_text())
    tensors = load_file(COMMITTED / f"{source}.safetensors")
    write_case(target, tensors | (change or {}), **original | meta)


def test_a_directory_given_by_environment_is_replayed_and_nothing_else(tmp_path: Path) -> None:
    copy_case("wan/dit_bidirectional", tmp_path / "mine" / "weights_here", case="weights_here")
    copy_case(
        "wan/causal_block1_local4_sink1", tmp_path / "mine" / "stream_7", weights_from="mine/weights_here"
    )

    code, output = run_golden(tmp_path)

    assert code == 0, output
    assert "test_reproduces_the_reference[mine/weights_here] PASSED" in output
    assert "test_reproduces_the_reference[mine/stream_7] PASSED" in output
    assert "4 passed" in output  # in PyTorch, and exported in ONNX Runtime
    assert "skipped" not in output
    assert "golden cases not yet replayed: 0" in output


def test_a_wrong_number_and_an_unknown_kind_fail_the_run_in_several_processes(tmp_path: Path) -> None:
    flow = load_file(COMMITTED / "wan" / "dit_bidirectional.safetensors")["out.flow"]
    flow[1, 2, 3, 4, 5] += 1
    copy_case("wan/dit_bidirectional", tmp_path / "mine" / "tampered", {"out.flow": flow})
    write_case(tmp_path / "mine" / "odd", {}, kind="wan.telepathy")

    code, output = run_golden(tmp_path, "-n", "2")

    assert code == 1, output
    assert "mine/tampered: out.flow: 1 of " in output
    assert "worst at [1, 2, 3, 4, 5]" in output
    assert "mine/odd: no replay for kind 'wan.telepathy'" in output


def test_a_directory_without_cases_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No golden cases"):
        discover(tmp_path)
