"""The context of a chunk: what the encoder makes of images, control frames and masks (vace.md 3 to 5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from streaming.engines.engine import VaeEngines
from streaming.network.autoencoder import Caches, Step, encode
from streaming.network.video import Array
from streaming.vace.pixels import checked, extended, mask_channels, split

CHANNELS: Final = 96  # of a context: inactive, reactive, mask
_MADE: Final = 0.5  # a mask above it asks for new pixels


@dataclass(frozen=True, slots=True)
class EncoderCaches:
    """What the streaming encoder remembers from chunk to chunk. None: its next frames are a stream's first.

    shared: the reference has one cache for both clips of a chunk, inactive first; then that of `reactive` is
    not used. For tiny autoencoders it has two.
    """

    shared: bool = True
    inactive: Caches | None = None
    reactive: Caches | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Clips:
    """What the context of a chunk is made of. Clips are float32 [1, 3, F, H, W], see `pixels`.

    references    one frame each
    frames        of a control video; None: there is none
    masks         [1, 1, F, H, W] of its frames; None: ones
    first, last   images that the chunk begins and ends with, one frame each
    """

    references: Sequence[Array] = ()
    frames: Array | None = None
    masks: Array | None = None
    first: Array | None = None
    last: Array | None = None


class ContextEncoder:
    """Makes the context of one chunk; `caches` are afterwards those for the next one."""

    def __init__(
        self,
        vae: VaeEngines,
        to_device: Callable[[Tensor], Tensor],
        step: Step,
        caches: EncoderCaches,
        *,
        first_chunk: bool,
        normalise: bool = True,
    ) -> None:
        """to_device: brings a tensor to the autoencoder. first_chunk: nothing was decoded since the reset."""
        self._vae, self._to_device, self._step = vae, to_device, step
        self._first_chunk, self._normalise = first_chunk, normalise
        self.caches = caches

    def context(self, clips: Clips, size: tuple[int, int], count: int) -> Tensor | None:
        """[1, F', 96, h, w]; None when there is nothing to make it of. Raises WanstreamError.

        size: height and width of the pictures. count: frames of an extension
        """
        if clips.first is not None or clips.last is not None:
            frames, masks = extended(clips.frames, clips.masks, clips.first, clips.last, count)
            return self._of_frames(*checked(frames, masks, *size), clips.references)
        if clips.frames is not None:
            return self._of_frames(*checked(clips.frames, clips.masks, *size), clips.references)
        if clips.references:
            return _padded(self._alone(np.concatenate(clips.references, axis=2)))
        return None

    def _of_frames(self, frames: Array, masks: Array, references: Sequence[Array]) -> Tensor:
        inactive, reactive = split(frames, masks)
        kept = self._streamed(inactive, "inactive")
        pure_control = bool((masks > _MADE).all())
        made = self._streamed(reactive, "reactive") if pure_control else self._alone(reactive)
        mask = self._to_device(torch.from_numpy(mask_channels(masks))).transpose(1, 2)
        context = torch.cat([kept, made, mask], dim=2)
        return torch.cat([_padded(self._alone(references[0])), context], dim=1) if references else context

    def _alone(self, clip: Array) -> Tensor:
        """Encoded as a video of its own: [1, F', 16, h, w]."""
        return self._encode(clip, None, rest=False)[0]

    def _streamed(self, clip: Array, which: Literal["inactive", "reactive"]) -> Tensor:
        before = self.caches
        of_inactive = before.shared or which == "inactive"
        caches = before.inactive if of_inactive else before.reactive
        latents, after = self._encode(clip, None if self._first_chunk else caches, rest=True)
        if of_inactive:
            self.caches = replace(before, inactive=after)
        else:
            self.caches = replace(before, reactive=after)
        return latents

    def _encode(self, clip: Array, caches: Caches | None, *, rest: bool) -> tuple[Tensor, Caches]:
        """rest: as of `encode`; the reference's streaming encoder takes all frames, however many."""
        frames = self._to_device(torch.from_numpy(clip))
        return encode(self._vae, frames, caches, self._step, normalise=self._normalise, rest=rest)


def _padded(latents: Tensor) -> Tensor:
    """A reference's latents as a context: in the inactive group, the rest zero."""
    missing = CHANNELS - latents.shape[2]
    return torch.cat([latents, latents.new_zeros((*latents.shape[:2], missing, *latents.shape[3:]))], dim=2)
