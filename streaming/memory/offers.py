"""What of a pipeline has room in a memory, whether its weights are here or not. Torch-free."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from streaming.engines.load_plan import LoadPlan
from streaming.memory.checkpoints import CheckpointSizes
from streaming.memory.fit import Fit, fit_checkpoint
from streaming.memory.plan import DoesNotFitError
from streaming.specs import PipelineSpec, VaeType

SIZES: Final = ((480, 832), (320, 576), (240, 416), (160, 288))  # height x width, the largest first

PlanOf = Callable[[VaeType, tuple[int, int]], tuple[LoadPlan, CheckpointSizes]]


@dataclass(frozen=True, slots=True)
class Offer:
    """The largest of the usual sizes that fits with an autoencoder. Sizes in pixels.

    sessions   streams that have room at once; None: nobody can tell
    """

    vae_type: VaeType
    height: int
    width: int
    sessions: int | None

    def __str__(self) -> str:
        return f"{self.height}x{self.width} with vae_type {self.vae_type}"


def offers(spec: PipelineSpec, plan_of: PlanOf, free: int | None, free_on_cpu: int | None) -> list[Offer]:
    """In the order of the pipeline's autoencoders; those that nothing fits with are left out.

    plan_of: a load, before memory is looked at. free, free_on_cpu: as of `fit_checkpoint`.
    """
    assert spec.loop is not None, f"pipeline '{spec.id}' has no model"
    found = []
    for vae_type in spec.loop.vae_types:
        for size, chosen in _fitting(spec, plan_of, vae_type, free, free_on_cpu):
            found.append(Offer(vae_type, *size, chosen.sessions))
            break
    return found


def _fitting(
    spec: PipelineSpec, plan_of: PlanOf, vae_type: VaeType, free: int | None, free_on_cpu: int | None
) -> Iterator[tuple[tuple[int, int], Fit]]:
    for size in SIZES:
        plan, sizes = plan_of(vae_type, size)
        try:
            yield size, fit_checkpoint(spec, sizes, plan, (vae_type,), free, free_on_cpu)
        except DoesNotFitError:
            continue
