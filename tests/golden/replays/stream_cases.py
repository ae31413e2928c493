"""Reading cases of kind `stream`, which come in two notations, into one form.

Cases with `pipeline_config` (longlive, memflow) tell the calls of the model, prompts by request and one black
picture per latent frame. The others tell counters in tokens and real numbers of pictures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streaming.specs import SPECS, TEMPORAL_FACTOR, TEXT, VIDEO, CachedKeys, LoopSpec, PipelineSpec
from streaming.triton.sessions import Images
from tests.golden.case import GoldenCase

DENOISE, WRITE = "denoise", "write"  # a call for flow; one for keys and values


@dataclass(frozen=True)
class ChunkCase:
    """One chunk: what it is given, and what is known about it. What the notation does not tell is None."""

    parameters: Mapping[str, Any]
    noise: list[Tensor]  # in the order in which it is drawn
    video_latents: Tensor | None
    pictures: Images | None
    calls: list[str]
    timesteps: list[float]  # of the denoising calls
    seed: int
    start_after: int  # latent frame at which the next chunk starts
    held_after: int  # latent frames in the cache
    embedding: str  # name of the tensor
    resets: bool
    output_shape: list[int]
    updated: bool | None = None
    in_transition: bool | None = None
    records_after: int | None = None  # frames that were recorded for the memory bank
    reencoded_latent: Tensor | None = None  # of one picture, [1, 1, C, h, w]
    reencoded_picture: int | None = None  # which one, counted from the stream's first picture


@dataclass(frozen=True)
class StreamCase:
    """A stream and its pipeline."""

    case: GoldenCase
    pipeline: PipelineSpec
    loop: LoopSpec
    pictures_per_latent: int  # of every latent frame but a stream's first
    prompts: Mapping[str, str]  # text -> name of its embedding; others are names themselves
    chunks: list[ChunkCase]
    kv_names: str  # of recorded caches, with {k}, {layer} and {part}
    bank_names: str = "step{k}.state.bank.{layer}.{part}"


def read_stream(case: GoldenCase) -> StreamCase:
    """Both notations."""
    return _with_requests(case) if "pipeline_config" in case.config else _with_counters(case)


def _with_requests(case: GoldenCase) -> StreamCase:
    config = case.config
    given, model = config["pipeline_config"], config["pipeline_config"]["base_model_kwargs"]
    pipeline = SPECS[config["pipeline"]]
    assert pipeline.loop is not None, f"{case}: pipeline '{pipeline.id}' has no loop"
    loop = replace(
        _with_frames(pipeline.loop, given["num_frame_per_block"]),
        local_attn_size=given["local_attn_size"],
        sink_size=model["sink_size"],
        global_sink=given["global_sink"],
        rope_positions=given["max_rope_freq_table_seq_len"],
        timestep_shift=model["timestep_shift"],
        record_interval=given.get("record_interval"),
        bank_size=model.get("bank_size", 0),
    )
    chunks = [_chunk_with_request(case, k) for k in range(len(case.steps))]
    return StreamCase(
        case, pipeline, loop, 1, _embedding_names(case), chunks, "step{k}.state.kv.{layer}.{part}"
    )


def _with_frames(loop: LoopSpec, frames: int) -> LoopSpec:
    """Other chunks; the first ones are longer by as much as the pipeline's own."""
    more = frames - loop.frames_per_chunk
    return replace(
        loop,
        frames_per_chunk=frames,
        first_text_frames=loop.first_text_frames + more,
        first_video_frames=loop.first_video_frames + more,
    )


def _chunk_with_request(case: GoldenCase, k: int) -> ChunkCase:
    step, tensors = case.steps[k], case.tensors
    latents = tensors.get(f"step{k}.in.video_latents")
    steps = case.meta.get("denoising_step_list") or _steps_of_calls(case, k)
    parameters = {
        "input_mode": TEXT if latents is None else VIDEO,
        "prompts": [{"text": step["cond"], "weight": 1.0}],
        "init_cache": k == 0,
        **({"denoising_step_list": steps} if steps else {}),
        **step.get("request", {}),
    }
    pictures = None
    if latents is not None:  # the pictures were not recorded, only the noise scale that followed from them
        parameters |= {"noise_controller": False, "noise_scale": step["noise_scale"]}
        pictures = np.zeros((1, case.config["height"], case.config["width"], 3), np.uint8)
    noise = [tensors[f"step{k}.in.noise_init"]]
    return ChunkCase(
        parameters=parameters,
        noise=noise + _numbered(tensors, f"step{k}.in.renoise", 0),
        video_latents=latents,
        pictures=pictures,
        calls=[DENOISE if call["kind"] == "denoise" else WRITE for call in step["calls"]],
        timesteps=[float(call["timestep"]) for call in step["calls"] if call["kind"] == "denoise"],
        seed=case.config["base_seed"] + step["start_frame"],
        start_after=step["calls"][-1]["kv_after"]["global_end"],
        held_after=step["calls"][-1]["kv_after"]["local_end"],
        embedding=step["cond"],
        resets=step["vae_cache_cleared"] > 0,
        output_shape=step["output_video_shape"],
        updated=step["conditioning_updated"],
        in_transition=step["transition_active"],
        records_after=step["calls"][-1].get("bank_after", {}).get("global_end"),
    )


def _steps_of_calls(case: GoldenCase, k: int) -> list[int] | None:
    """The steps of a text chunk where no request of the case speaks of them."""
    spoken_of = any("denoising_step_list" in step.get("request", {}) for step in case.steps)
    if spoken_of or f"step{k}.in.video_latents" in case.tensors:
        return None
    return [int(call["timestep"]) for call in case.steps[k]["calls"] if call["kind"] == "denoise"]


def _embedding_names(case: GoldenCase) -> Mapping[str, str]:
    """Where the case does not list them, a text's embedding is that of the chunk that shows it first."""
    if "text_embeddings" in case.meta:
        listed: Mapping[str, str] = case.meta["text_embeddings"]
        return listed
    found: dict[str, str] = {}
    for step in case.steps:
        request = step.get("request", {})
        transition = request.get("transition") or {}
        for prompt in request.get("prompts", []) if not transition else []:
            found.setdefault(prompt["text"], step["cond"])
        if transition and not step["transition_active"]:
            found.setdefault(transition["target_prompts"][0]["text"], step["cond"])
    return found


def _with_counters(case: GoldenCase) -> StreamCase:
    config = case.config
    pipeline = next(spec for id, spec in SPECS.items() if id.startswith(case.meta["area"].replace("_", "-")))
    assert pipeline.loop is not None, f"{case}: pipeline '{pipeline.id}' has no loop"
    loop = replace(
        _with_frames(pipeline.loop, config["pipeline"]["num_frame_per_block"]),
        local_attn_size=config["pipeline"]["local_attn_size"],
        rope_positions=config["pipeline"]["max_rope_freq_table_seq_len"],
        sink_size=config["sink_size"],
        timestep_shift=config["timestep_shift"],
        sink_ema_decay=config.get("compression_alpha"),
        first_video_advance=_first_video_advance(case),
        context_frames=config.get("kv_cache_num_frames", pipeline.loop.context_frames),
    )
    recomputed = loop.cached_keys is CachedKeys.RECOMPUTED
    chunks = [_chunk_with_counters(case, k, writes_first=recomputed) for k in range(len(case.steps))]
    return StreamCase(case, pipeline, loop, TEMPORAL_FACTOR, {}, chunks, "step{k}.state.kv{layer}.{part}")


def _first_video_advance(case: GoldenCase) -> int | None:
    """By how much the counter goes on in a first chunk of video; only the numbers of the chunks tell it."""
    for k, step in enumerate(case.steps):
        if step["current_start_frame"] == 0 and f"step{k}.in.video_latents" in case.tensors:
            return int(step["current_start_frame_after"])
    return None


def _chunk_with_counters(case: GoldenCase, k: int, *, writes_first: bool) -> ChunkCase:
    """writes_first: the cache is made before every chunk but a stream's first, not after every one."""
    step, tensors, config = case.steps[k], case.tensors, case.config
    latents, pictures = (tensors.get(f"step{k}.in.{name}") for name in ("video_latents", "video_frames"))
    parameters = {
        "input_mode": TEXT if latents is None else VIDEO,
        "prompts": [{"text": step["prompt"], "weight": 1.0}],
        "init_cache": step.get("init_cache_requested", False),
        "denoising_step_list": step["denoising_steps"],
        "noise_scale": step.get("user_noise_scale"),
        "noise_controller": step.get("noise_controller"),
        "kv_cache_attention_bias": step.get("kv_cache_attention_bias"),
    }
    if latents is not None and pictures is None:  # only the noise scale that followed from them was recorded
        parameters |= {"noise_controller": False, "noise_scale": step["effective_noise_scale"]}
        pictures = torch.zeros(1, config["height"], config["width"], 3, dtype=torch.uint8)
    denoising = list(step["transformer_calls"])
    before = [denoising.pop(0)] if writes_first and step["current_start_frame"] > 0 else []
    after = [] if writes_first else [denoising.pop()]
    return ChunkCase(
        parameters=parameters,
        noise=_numbered(tensors, f"step{k}.in.noise", 0),
        video_latents=latents,
        pictures=None if pictures is None else pictures.numpy(),
        calls=[WRITE] * len(before) + [DENOISE] * len(denoising) + [WRITE] * len(after),
        timesteps=[call["timestep"] for call in denoising],
        seed=step["noise_seed"],
        start_after=step["current_start_frame_after"],
        held_after=step["local_end_index"] // config["tokens_per_frame"],
        embedding=step["prompt"],
        resets=step.get("cache_reset", False),
        output_shape=[step["pixel_frames"], config["height"], config["width"], 3],
        reencoded_latent=tensors.get(f"step{k}.in.reencoded_first_latent"),
        reencoded_picture=step.get("reencoded_pixel_frame_index"),
    )


def _numbered(tensors: Mapping[str, Tensor], prefix: str, first: int) -> list[Tensor]:
    found = []
    while f"{prefix}{first + len(found)}" in tensors:
        found.append(tensors[f"{prefix}{first + len(found)}"])
    return found
