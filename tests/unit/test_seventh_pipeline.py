"""A pipeline that the product does not have: data alone makes one (docs/adding-a-pipeline.md)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.pipelines.schemas import pipeline_schema
from gateway.serving.interface import Availability
from gateway.stream.parameters.state import ParameterContext, ParameterState
from streaming.specs import TEXT, VIDEO, CachedKeys, LoopSpec, OnPromptChange, PipelineSpec, SizeRange
from streaming.triton.model_pipeline import ModelStream
from tests.tiny_pipeline import camera, chunk, tiny_pipeline

BIRD = [{"text": "a bird", "weight": 1.0}]
# Chunks of two latent frames, a sink of one, a bank, and prompts that re-cache: no pipeline is like that.
TOY = PipelineSpec(
    id="toy",
    name="Toy",
    config_title="ToyConfig",
    description="Shows that a pipeline is data.",
    docs_url=None,
    height=96,
    width=160,
    size=SizeRange(32, 256, 16),
    default_mode=VIDEO,
    denoising_steps=(900, 400),
    supports_lora=False,
    supports_vace=False,
    supports_quantization=False,
    supports_kv_cache_bias=True,
    kv_cache_attention_bias=0.5,
    input_frames_per_chunk=8,
    video_frames_per_request=8,
    loop=LoopSpec(
        frames_per_chunk=2,
        local_attn_size=7,
        first_text_frames=2,
        first_video_frames=3,
        sink_size=1,
        timestep_shift=3.0,
        on_prompt_change=OnPromptChange.RECACHE,
        bank_size=1,
        record_interval=2,
    ),
)
assert TOY.loop is not None
LOOPS = {
    "bank": TOY.loop,
    "averaged sink": replace(TOY.loop, cached_keys=CachedKeys.UNROTATED, sink_ema_decay=0.9, bank_size=0),
    "recomputed": replace(
        TOY.loop,
        cached_keys=CachedKeys.RECOMPUTED,
        on_prompt_change=OnPromptChange.KEEP,
        local_attn_size=4,
        context_frames=2,
        sink_size=0,
        bank_size=0,
        padding_keys=16,
    ),
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_it_streams_in_both_modes_and_follows_its_prompt(loop: LoopSpec) -> None:
    stream = tiny_pipeline(spec=replace(TOY, loop=loop)).open_stream()
    other = tiny_pipeline(spec=replace(TOY, loop=loop)).open_stream()

    text = [chunk(stream)[0] for _ in range(6)]
    same = [chunk(other)[0] for _ in range(6)]
    changed, kept = chunk(stream, prompts=BIRD)[0], chunk(other)[0]
    video = [chunk(stream, camera(k, 8))[0] for k in range(3)]

    assert [len(pictures) for pictures in text] == [5, 8, 8, 8, 8, 8]
    assert [len(pictures) for pictures in video] == [9, 8, 8]
    assert all(np.array_equal(a, b) for a, b in zip(text, same, strict=True))
    assert not np.array_equal(changed, kept)
    assert isinstance(stream, ModelStream)
    assert len(stream.session.kv.ring.frames) <= loop.local_attn_size


def test_clients_see_its_data() -> None:
    schema = pipeline_schema(TOY, Availability(True))
    parameters = ParameterState.open(ParameterContext(TOY, {"base_seed": 7}, Path("nowhere")), {}).effective

    properties = schema["config_schema"]["properties"]
    assert (schema["id"], schema["default_mode"], schema["input_size"]) == ("toy", VIDEO, {TEXT: 0, VIDEO: 8})
    assert (properties["height"]["default"], properties["height"]["maximum"]) == (96, 256)
    assert parameters["denoising_step_list"] == [900, 400]
    assert parameters["kv_cache_attention_bias"] == 0.5
