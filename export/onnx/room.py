"""Whether a GPU has room for engines, looked at before they are made."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from streaming.engines.engine_set import EngineSet
from streaming.engines.manifest import EngineManifest
from streaming.memory.fit import Fit, fit
from streaming.memory.machine import gpu_memory_bytes
from streaming.memory.plan import GPU, DoesNotFitError
from streaming.specs import LoopSpec

Size = tuple[int, int]
Sized = Mapping[Size, Fit | DoesNotFitError]

_ADVICE: Final = "For a GPU that is not here, give its memory: --gpu-memory GB; 0 looks at none."


def gpu_bytes(given_gb: float | None, gpu: int = 0) -> int | None:
    """Memory of the GPU that will serve: what the user says, else this machine's; None: nobody can tell.

    given_gb: 0 stands for a GPU that is not looked at
    """
    if given_gb is not None:
        return round(given_gb * 1e9) or None
    found = gpu_memory_bytes(gpu)
    return None if found is None else found[1]


def fits(
    engines: EngineSet, manifests: Mapping[str, EngineManifest], loop: LoopSpec, gpu: int | None
) -> Sized:
    """How a load of each size of picture goes into a GPU of so many bytes, or why it does not."""
    return {
        (vae.height, vae.width): _fit(engines, manifests, loop, (vae.height, vae.width), gpu)
        for vae in engines.vae
    }


def check_room(found: Sized, say: Callable[[str], None]) -> None:
    """Say of each size how it fits. Raises DoesNotFitError, with the numbers, if none does."""
    refusals = {size: result for size, result in found.items() if isinstance(result, DoesNotFitError)}
    if len(refusals) == len(found):
        raise DoesNotFitError(f"{next(iter(refusals.values()))} {_ADVICE}")
    for (height, width), result in found.items():
        text = f"No room: {result}" if isinstance(result, DoesNotFitError) else result.summary
        say(f"{height}x{width}: {text}")


def as_json(found: Sized) -> dict[Size, dict[str, Any]]:
    """For a description of each size: how many streams fit, and whether the text encoder takes turns."""
    return {
        size: {"sessions": 0, "text_encoder_in_turns": None}
        if isinstance(result, DoesNotFitError)
        else {
            "sessions": result.sessions if result.free is not None else None,
            "text_encoder_in_turns": bool(result.make_room) if result.free is not None else None,
        }
        for size, result in found.items()
    }


def _fit(
    engines: EngineSet, manifests: Mapping[str, EngineManifest], loop: LoopSpec, size: Size, gpu: int | None
) -> Fit | DoesNotFitError:
    here = {name: manifests[name] for name in engines.engines(size)}
    try:
        return fit(engines, here, engines.built_for(loop), size, GPU, gpu)
    except DoesNotFitError as error:
        return error
