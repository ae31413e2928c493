"""From what a chunk is asked to be to the context that its denoising follows (vace.md 1 and 7)."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from streaming.conditioning.conditions import VaceContext
from streaming.network.autoencoder import Step
from streaming.network.video import Array
from streaming.specs import TEMPORAL_FACTOR
from streaming.vace.context import Clips, ContextEncoder
from streaming.vace.pixels import control_clip, image_clip, mask_clip

if TYPE_CHECKING:
    from streaming.loop import ChunkRequest
    from streaming.network.model import StreamModel
    from streaming.session import Session

logger = logging.getLogger(__name__)


def vace_context(
    model: "StreamModel", chunk: "Session", request: "ChunkRequest", step: Step
) -> VaceContext | None:
    """The context of a chunk; None: it is made without the branch. Raises WanstreamError.

    At scale 0 the context is encoded all the same: the next chunk's goes on from it.
    """
    if model.engines.vace is None:
        return None
    count = TEMPORAL_FACTOR * model.spec.frames_per_chunk
    clips = clips_of(request, (model.height, model.width), count + (chunk.start == 0))
    encoder = ContextEncoder(
        model.engines.vae,
        model.to_device,
        step,
        chunk.vace_caches,
        first_chunk=chunk.start == 0,
        normalise=model.spec.normalise_encoded_video,
    )
    latents = encoder.context(clips, (model.height, model.width), count)
    chunk.vace_caches = encoder.caches
    if latents is None or request.vace_context_scale == 0:
        return None
    if not chunk.vace_cross_kv:
        embedding = chunk.prompt.embedding
        assert embedding is not None, "a stream's first prompt has an embedding"
        with step("text"):
            chunk.vace_cross_kv = model.vace_cross_kv(embedding)
    return VaceContext(latents, request.vace_context_scale, chunk.vace_cross_kv, model.vace_padding)


def clips_of(request: "ChunkRequest", size: tuple[int, int], count: int) -> Clips:
    """The pixels of a request. count: frames that a control video gives"""

    def image(pixels: Array | None) -> Array | None:
        return None if pixels is None else image_clip(pixels, *size)

    frames, masks = request.vace_input_frames, request.vace_input_masks
    has_frames = frames is not None and len(frames) > 0
    references = [image_clip(pixels, *size) for pixels in request.vace_ref_images]
    extends = request.first_frame_image is not None or request.last_frame_image is not None
    if len(references) > 1 and (has_frames or extends):
        logger.warning("Of %d reference images only the first goes with a video.", len(references))
    return Clips(
        references=references,
        frames=control_clip(frames, *size, count) if has_frames and frames is not None else None,
        masks=None if masks is None or not has_frames else mask_clip(np.asarray(masks), *size, count),
        first=image(request.first_frame_image),
        last=image(request.last_frame_image),
    )
