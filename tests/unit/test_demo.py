"""The demonstration engines that a server makes itself, with a stand-in for the export."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from gateway.serving.demo import DemoEngines
from gateway.serving.engine_sets import EngineSets
from gateway.serving.interface import ServingError
from streaming.engines.demo import DEMO_MODELS, demo_info
from streaming.engines.engine_set import SET, BranchSet, EngineSet, FrameCuts, ModelFacts, VaeSet
from streaming.specs import SPECS

LONGLIVE, MEMFLOW = SPECS["longlive"], SPECS["memflow"]


def write_set(engines: Path, size: tuple[int, int], *, demo: bool, vace: bool = False) -> None:
    """A set as an export leaves it; its engines are not there."""
    content = EngineSet(
        name="real" if not demo else "demo",
        pipeline=LONGLIVE.id,
        vae_type="wan",
        precision="fp32",
        demo=demo,
        window=12,
        cache_frames=9,
        model=ModelFacts(
            layers=1, heads=1, head_dim=4, freq_dim=4, text_len=4, text_dim=4, channels=16, patch=(1, 2, 2),
            spatial_factor=8,
        ),
        frames=FrameCuts(first=1, later=4, repeat_last=False),
        text_encoder="a",
        text_kv="b",
        transformer="c",
        vae=(
            VaeSet(
                height=size[0], width=size[1], encoder_first="d", encoder_next="e", decoder_first="f",
                decoder_next="g",
            ),
        ),
    )  # fmt: skip
    if vace:
        content = content.model_copy(update={"branch": BranchSet(transformer="h", text_kv="i", blocks=1)})
    directory = engines / "sets" / content.name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SET).write_text(content.model_dump_json())


def export_script(directory: Path, *lines: str) -> DemoEngines:
    """A demonstration whose export is this Python script."""
    script = directory / "export.py"
    script.write_text("\n".join(("import sys, time, subprocess", *lines)))
    (directory / "engines").mkdir(exist_ok=True)
    return DemoEngines(directory, directory / "engines", (sys.executable, "-u", str(script)))


async def test_steps_of_the_export_are_stages_and_its_end_is_remembered(tmp_path: Path) -> None:
    demo = export_script(tmp_path, "print('[1/2] a')", "print('[2/2] b')")
    stages: list[str] = []

    await demo.make(LONGLIVE, stages.append)

    assert "only once" in stages[0]
    assert [stage.partition(": ")[2] for stage in stages[1:]] == [
        "1 of 2 engines are ready...",
        "2 of 2 engines are ready...",
    ]
    assert demo.is_current(LONGLIVE)
    assert not demo.is_current(MEMFLOW)


async def test_engines_that_take_adapters_are_made_when_somebody_asks(tmp_path: Path) -> None:
    demo = export_script(tmp_path, "print('[1/1]', *(a for a in sys.argv if 'adapt' in a))")

    await demo.make(LONGLIVE, lambda stage: None)
    plain = demo.is_current(LONGLIVE, adapters=True)
    await demo.make(LONGLIVE, lambda stage: None, adapters=True)

    assert not plain
    assert demo.is_current(LONGLIVE, adapters=True)


async def test_a_failed_export_says_why_and_is_tried_again(tmp_path: Path) -> None:
    demo = export_script(tmp_path, "sys.exit('Error: The export needs 5 GB of disk; 1 GB are free.')")

    with pytest.raises(ServingError, match=r"could not be made: The export needs 5 GB .* wanstream-export"):
        await demo.make(LONGLIVE, lambda stage: None)

    assert not demo.is_current(LONGLIVE)


async def test_a_cancelled_export_leaves_no_process(tmp_path: Path) -> None:
    helper = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    demo = export_script(tmp_path, f"print('[1/9]', {helper}.pid)", "time.sleep(60)")
    said = asyncio.Event()

    def on_stage(stage: str) -> None:
        if "1 of 9" in stage:
            said.set()

    others = set(psutil.Process().children(recursive=True))
    making = asyncio.create_task(demo.make(LONGLIVE, on_stage))
    await asyncio.wait_for(said.wait(), 60)
    children = list(set(psutil.Process().children(recursive=True)) - others)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making

    _, alive = psutil.wait_procs(children, timeout=30)
    assert len(children) >= 2
    assert alive == []


async def test_a_demonstration_is_offered_until_there_are_real_engines(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    demo = export_script(tmp_path, "print('[1/1] a')")
    sets = EngineSets(engines, on_cpu=True, demo=demo)

    before = sets.availability(LONGLIVE)
    opening = sets.opening()
    write_set(engines, (320, 576), demo=False)

    about = demo_info(tmp_path / DEMO_MODELS)
    assert before.supported_resolutions == [about.size]
    assert (before.note, before.examples) == (about.note, about.examples)
    assert opening is LONGLIVE
    assert sets.availability(LONGLIVE).supported_resolutions == [(320, 576)]
    assert sets.opening() is None  # real weights are loaded when somebody asks
    others = [spec for spec in SPECS.values() if spec.loop is not None and spec is not LONGLIVE]
    assert [sets.availability(spec).examples for spec in others] == [about.examples] * 4
    assert all(sets.waits_for_demo(spec) for spec in others)
    await sets.prepare(LONGLIVE, pytest.fail)


async def test_engines_of_an_older_version_are_made_again(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    write_set(engines, (64, 64), demo=True)
    sets = EngineSets(engines, on_cpu=True, demo=export_script(tmp_path, "print('[1/1] a')"))
    (engines / ".demo-longlive").write_text("of another version")
    stages: list[str] = []

    stale = sets.availability(LONGLIVE)
    await sets.prepare(LONGLIVE, stages.append)
    await sets.prepare(LONGLIVE, pytest.fail)

    assert stale.supported_resolutions == [demo_info(tmp_path / DEMO_MODELS).size]
    assert len(stages) == 2
    assert sets.availability(LONGLIVE).supported_resolutions == [(64, 64)]


async def test_the_branch_is_exported_when_somebody_asks_and_again_by_a_new_version(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    demo = export_script(tmp_path, "print('--vace' in sys.argv, file=open('asked', 'a'))")
    sets = EngineSets(engines, on_cpu=True, demo=demo)

    def offered() -> tuple[bool, bool]:
        found = sets.availability(LONGLIVE)
        return found.vace, found.vace_default

    before = offered()
    await sets.prepare(LONGLIVE, lambda stage: None)
    write_set(engines, (96, 96), demo=True)
    without = offered()
    assert not sets.waits_for_demo(LONGLIVE)
    await sets.prepare(LONGLIVE, lambda stage: None, vace=True)
    write_set(engines, (96, 96), demo=True, vace=True)
    with_it = offered()
    assert not sets.waits_for_demo(LONGLIVE, vace=True)
    (engines / ".demo-longlive").write_text("of another version")
    await sets.prepare(LONGLIVE, lambda stage: None)

    assert (before, without, with_it) == ((True, False), (True, False), (True, False))
    assert (tmp_path / "asked").read_text().split() == ["False", "True", "True"]


def test_real_engines_with_the_branch_are_found_before_those_without(tmp_path: Path) -> None:
    for vace in (False, True):
        write_set(tmp_path, (320, 576), demo=False, vace=vace)
        (tmp_path / "sets" / "real").rename(tmp_path / "sets" / f"real-{vace}")
    sets = EngineSets(tmp_path, on_cpu=True)
    size = {"height": 320, "width": 576, "vae_type": "wan"}

    assert sets.availability(LONGLIVE).vace
    assert sets.find(LONGLIVE, size | {"vace_enabled": True}).content.branch is not None
    assert sets.find(LONGLIVE, size).content.branch is None


def test_a_server_without_demonstration_says_what_to_run(tmp_path: Path) -> None:
    sets = EngineSets(tmp_path, on_cpu=True)

    assert "wanstream-export longlive" in str(sets.availability(LONGLIVE).reason)
    assert sets.opening() is None


async def test_a_very_long_line_of_the_export_is_cut_and_does_not_end_it(tmp_path: Path) -> None:
    script = ("print('x' * 200_000)", "print('why')", "sys.stdout.write('no end')", "sys.exit(1)")

    with pytest.raises(ServingError) as caught:
        await export_script(tmp_path, *script).make(LONGLIVE, lambda stage: None)

    assert "x why no end" in str(caught.value)
    assert len(str(caught.value)) < 10_000
