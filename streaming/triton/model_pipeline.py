"""A pipeline with a model, as `streaming/triton/sessions.py` wants it: parameters of a chunk -> the loop.

Names and ranges of the parameters are those of api.md 9.3; the gateway has validated them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from streaming.adapters.stack import RuntimeAdapter, Stacker
from streaming.conditioning.prompts import PromptRequest, Prompts, TransitionRequest
from streaming.engines.load_plan import PlannedAdapter
from streaming.errors import WanstreamError
from streaming.loop import ChunkRequest, StepTimer, generate_chunk
from streaming.network.model import StreamModel
from streaming.noise import NoiseSource, SeededNoise
from streaming.session import Session
from streaming.specs import TEXT, VIDEO, PipelineSpec
from streaming.triton.protocol import Meta
from streaming.triton.sessions import Images, Stream

_WARM_UP_STEPS = (1000, 500)  # two run everything that more of them run


class ModelPipeline:
    """One loaded model and what its parameters default to."""

    def __init__(
        self,
        spec: PipelineSpec,
        model: StreamModel,
        base_seed: int,
        noise: NoiseSource | None = None,
        stacker: Stacker | None = None,
    ) -> None:
        """base_seed: of the load; a chunk's own wins. stacker: None: the engines take no adapters."""
        self._stacker = stacker
        self.spec, self.model, self.base_seed = spec, model, base_seed
        self.noise: NoiseSource = noise or SeededNoise()

    def open_stream(self) -> Stream:
        return ModelStream(self)

    def adapt(self, parameters: Mapping[str, Any]) -> None:
        adapters = map(PlannedAdapter.model_validate, parameters["adapters"])
        self.put_beside([RuntimeAdapter(a.path, a.name, a.scale) for a in adapters])

    def put_beside(self, adapters: Sequence[RuntimeAdapter]) -> None:
        """Go on with these LoRA files beside the weights; streams meet them in their next chunks.

        Raises WanstreamError; those of before stay.
        """
        if self._stacker is None:
            raise WanstreamError(
                "What is loaded takes no LoRA files while it runs: load it with lora_merge_mode runtime_peft."
            )
        self.model = replace(self.model, adapters=self._stacker(adapters))

    def warm_up(self) -> None:
        """Make chunks of every kind on a stream that is thrown away: first, later, new prompt, video."""
        stream = self.open_stream()
        pictures = np.zeros(
            (self.spec.input_frames_per_chunk, self.model.height, self.model.width, 3), np.uint8
        )
        chunks = [(TEXT, "a", False), (TEXT, "a", False), (TEXT, "b", False)]
        chunks += [(VIDEO, "b", False)] * 2
        if self.model.engines.vace is not None:
            chunks += [(VIDEO, "b", True)] * 2
        for mode, text, control in chunks:
            parameters = {
                "input_mode": mode,
                "prompts": text,
                "denoising_step_list": _WARM_UP_STEPS,
                "vace_use_input_video": control,
            }
            for _ in stream.next_chunk(parameters, pictures if mode == VIDEO else None, lambda: False):
                pass

    def close(self) -> None:
        """Engines are released with the last reference to the model."""


class ModelStream:
    """One session's stream."""

    def __init__(self, pipeline: ModelPipeline) -> None:
        self._pipeline = pipeline
        self.session = Session.begin(pipeline.model)

    def next_chunk(
        self, parameters: Mapping[str, Any], video: Images | None, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Images, Meta]]:
        """Make one chunk. Its pictures come first; the last response has none, and what is to be said."""
        pipeline, step = self._pipeline, StepTimer(cancelled)
        has_vace = pipeline.model.engines.vace is not None
        request = chunk_request(parameters, video, pipeline.spec, pipeline.base_seed, has_vace=has_vace)
        for pictures in generate_chunk(pipeline.model, self.session, request, pipeline.noise, step):
            yield pictures, Meta()
        yield (
            np.zeros((0, pipeline.model.height, pipeline.model.width, 3), np.uint8),
            Meta(
                last=True,
                timings_ms=dict(step.timings_ms),
                transition_active=self.session.prompt.in_transition,
            ),
        )


def chunk_request(
    parameters: Mapping[str, Any],
    video: Images | None,
    spec: PipelineSpec,
    base_seed: int,
    *,
    has_vace: bool = False,
) -> ChunkRequest:
    """All parameters in force -> what the loop is asked for; what is absent takes its default.

    has_vace: the input video is a control video, unless a parameter says otherwise; such a chunk is one of
    text mode
    """
    value = parameters.get
    mode = value("input_mode", TEXT if video is None else VIDEO)
    control = None
    if has_vace and mode == VIDEO and video is not None and len(video) and _controls(parameters):
        mode, video, control = TEXT, None, video
    method = value("prompt_interpolation_method", "linear")
    request = ChunkRequest(
        prompt=PromptRequest(
            prompts_of(value("prompts", ())), method, transition_request(parameters.get("transition"))
        ),
        steps=tuple(value("denoising_step_list", spec.denoising_steps)),
        seed=value("base_seed", base_seed),
        mode=mode,
        past_weight=value("kv_cache_attention_bias", spec.kv_cache_attention_bias)
        if spec.supports_kv_cache_bias
        else 1.0,
        video=video if mode == VIDEO else None,
        vace_input_frames=control,
    )
    request = replace(request, lora_scales={e["path"]: e["scale"] for e in value("lora_scales", ())})
    names = ({field.name for field in fields(ChunkRequest)} & parameters.keys()) - {"lora_scales"}
    return replace(request, **{name: parameters[name] for name in names if parameters[name] is not None})


def _controls(parameters: Mapping[str, Any]) -> bool:
    """Whether VACE takes the input video (vace.md 2.1); without a word it does."""
    names = ("vace_enabled", "vace_use_input_video")
    return all(parameters.get(name) in (None, True) for name in names)


def transition_request(transition: Mapping[str, Any] | None) -> TransitionRequest | None:
    """A `transition` parameter; without target prompts there is none."""
    if transition is None or not transition.get("target_prompts"):
        return None
    return TransitionRequest(
        target=prompts_of(transition["target_prompts"]),
        steps=int(transition.get("num_steps") or 0),
        method=transition.get("temporal_interpolation_method") or "linear",
    )


def prompts_of(prompts: str | Sequence[str | Mapping[str, Any]]) -> Prompts:
    """Texts with weights; a bare text has weight 1."""
    entries = [prompts] if isinstance(prompts, str) else prompts
    return tuple(
        (entry, 1.0) if isinstance(entry, str) else (entry["text"], float(entry.get("weight", 1.0)))
        for entry in entries
    )
