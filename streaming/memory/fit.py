"""Whether a load fits in memory, how, and for how many sessions (serving.md 8.7, decisions.md "Serving")."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from streaming.engines.engine_set import EngineSet
from streaming.engines.load_plan import LoadPlan, TorchPlan
from streaming.engines.manifest import EngineManifest
from streaming.memory.checkpoints import CheckpointSizes, checkpoint_memory, text_memory
from streaming.memory.plan import DoesNotFitError, MemoryPlan, Placement, memory_plan
from streaming.memory.units import in_units
from streaming.specs import LoopSpec, PipelineSpec

_MOST_SESSIONS, _MOST_ON_GPU = 8, 64  # however much memory there is


@dataclass(frozen=True, slots=True)
class Fit:
    """How a load goes into memory.

    plan        while pictures are made
    make_room   engines whose place the text encoder takes whenever there is a new prompt; none: it is always
                there
    sessions    how many streams may run at once; None: nobody can tell
    free        bytes that there were; None: nobody can tell
    pytorch     what backend `pytorch` runs, and where; None: another backend
    """

    plan: MemoryPlan
    make_room: tuple[str, ...]
    sessions: int | None
    free: int | None
    pytorch: TorchPlan | None = None

    @property
    def summary(self) -> str:
        """A sentence for people."""
        total, each = in_units(self.plan.total()), in_units(self.plan.per_session)
        need = f"Needs {total} of {self.plan.placement.memory}, {each} of it a session"
        if self.free is None:
            return f"{need}; how much is free is not known."
        swap = " The text encoder takes turns with the other engines." if self.make_room else ""
        if self.pytorch is not None and self.pytorch.on_gpu and self.pytorch.text_device == "cpu":
            swap = " The text encoder is on the CPU."
        return f"{need}; {in_units(self.free)} are free: room for {self.sessions} session(s).{swap}"


def fit(
    engines: EngineSet,
    manifests: Mapping[str, EngineManifest],
    loop: LoopSpec,
    size: tuple[int, int],
    placement: Placement,
    free: int | None,
) -> Fit:
    """Keep everything in memory if at least one session has room then, else swap the text encoder in and out.

    manifests: of all engines of this size in pixels. free: bytes; None: nobody can tell.
    Raises DoesNotFitError, with the numbers, when neither has room.
    """
    everything = memory_plan(engines, manifests, loop, size, placement)
    most = _MOST_ON_GPU if placement.on_gpu else _MOST_SESSIONS
    if free is None:
        return Fit(everything, (), None if placement.on_gpu else most, None)
    if everything.total() <= free:
        return Fit(everything, (), min(most, everything.sessions_in(free)), free)
    encoder = engines.text_encoder
    others = {name: found for name, found in manifests.items() if name != encoder}
    without = memory_plan(engines, others, loop, size, placement)
    alone = memory_plan(engines, {encoder: manifests[encoder]}, loop, size, placement)
    without.check(free)
    if alone.shared + without.per_session > free:
        everything.check(free)
    beside = (free - alone.shared) // max(1, without.per_session)  # sessions keep their caches meanwhile
    return Fit(without, tuple(others), min(most, without.sessions_in(free), beside), free)


def fit_checkpoint(
    spec: PipelineSpec,
    sizes: CheckpointSizes,
    plan: LoadPlan,
    vae_types: Sequence[str],
    free: int | None,
    free_on_cpu: int | None,
) -> Fit:
    """The text encoder beside the rest if that has room; else on the CPU, or there in half its size.

    vae_types: whose files are there. free: bytes where the rest is, free_on_cpu: beside a GPU; None: nobody
    can tell. Raises DoesNotFitError, with the numbers and with what would fit, when nothing has room.
    """
    torch_plan = plan.pytorch
    assert torch_plan is not None, "the plan is for another backend"
    choices = [_checkpoint_fit(spec, sizes, plan.size, choice, free) for choice in _text_places(torch_plan)]
    if free is None:
        return choices[0]
    problem: DoesNotFitError | None = None
    for choice in choices:
        try:
            choice.plan.check(free, remedy=_nearest(spec, sizes, plan.size, torch_plan, vae_types, free))
            _check_text(spec, sizes, plan.size, choice, free_on_cpu)
        except DoesNotFitError as error:
            problem = error
        else:
            return choice
    assert problem is not None, "there are no choices"
    raise problem


def _checkpoint_fit(
    spec: PipelineSpec, sizes: CheckpointSizes, size: tuple[int, int], plan: TorchPlan, free: int | None
) -> Fit:
    """How many sessions go with this choice; it may be none."""
    assert spec.loop is not None, f"pipeline '{spec.id}' has no model"
    together = plan.text_device == plan.device
    memory = checkpoint_memory(spec.id, sizes, spec.loop, size, plan, text_encoder=together)
    most = _MOST_ON_GPU if plan.on_gpu else _MOST_SESSIONS
    if free is None:
        return Fit(memory, (), None if plan.on_gpu else most, None, plan)
    return Fit(memory, (), min(most, memory.sessions_in(free)), free, plan)


def _text_places(plan: TorchPlan) -> Iterator[TorchPlan]:
    """The plan with its text encoder where it is fastest, then where it takes less."""
    yield plan
    if plan.on_gpu or plan.text_precision != "bf16":
        yield plan.model_copy(update={"text_device": "cpu", "text_precision": "bf16"})


def _check_text(
    spec: PipelineSpec, sizes: CheckpointSizes, size: tuple[int, int], choice: Fit, free_on_cpu: int | None
) -> None:
    """Raises DoesNotFitError for a text encoder beside a GPU that the machine has no memory for."""
    plan = choice.pytorch
    if plan is not None and plan.text_device != plan.device and free_on_cpu is not None:
        text_memory(spec.id, sizes, size, plan).check(free_on_cpu, remedy="Free some, or use a larger GPU.")


def _nearest(
    spec: PipelineSpec,
    sizes: CheckpointSizes,
    size: tuple[int, int],
    plan: TorchPlan,
    vae_types: Sequence[str],
    free: int,
) -> str:
    """A sentence: what of this pipeline would fit, with the least change."""

    assert spec.loop is not None, f"pipeline '{spec.id}' has no model"

    def fits(size: tuple[int, int], plan: TorchPlan) -> bool:
        return any(
            (_checkpoint_fit(spec, sizes, size, p, free).sessions or 0) > 0 for p in _text_places(plan)
        )

    others = [
        plan.model_copy(update={"vae_type": kind}) for kind in spec.loop.vae_types if kind != plan.vae_type
    ]
    half = [plan.model_copy(update={"precision": "bf16"})] if plan.precision == "fp32" else []
    found = [
        *(f"{small[0]}x{small[1]}" for small in _smaller(spec, size) if fits(small, plan)),
    ][:1]
    found += [_vae_name(other, vae_types) for other in others if fits(size, other)][:1]
    found += ["WANSTREAM_PYTORCH_PRECISION=bf16" for other in half if fits(size, other)]
    if not found:
        found = [
            f"{small[0]}x{small[1]} with {_vae_name(other, vae_types)}"
            for small in _smaller(spec, size)
            for other in others
            if fits(small, other)
        ][:1]
    if not found:
        return "Nothing of this pipeline fits: load another pipeline, or use a larger machine."
    return f"What fits here, all else being equal: {', or '.join(found)}."


def _vae_name(plan: TorchPlan, there: Sequence[str]) -> str:
    missing = "" if plan.vae_type in there else " (its file is not here)"
    return f"vae_type {plan.vae_type}{missing}"


def _smaller(spec: PipelineSpec, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Smaller pictures of about the same shape, the largest first."""
    step = spec.size.step
    for eighths in range(7, 0, -1):
        height, width = (side * eighths // 8 // step * step for side in size)
        if min(height, width) >= spec.size.minimum:
            yield height, width
