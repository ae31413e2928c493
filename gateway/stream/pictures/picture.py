"""A picture that is shown now, and the form in which encoders take it."""

import fractions
import threading
from typing import Final

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from gateway.serving.interface import Images
from streaming.errors import WanstreamError

CLOCK_RATE: Final = 90_000  # of timestamps, per second
TIME_BASE: Final = fractions.Fraction(1, CLOCK_RATE)

# A pixel of chroma is the mean of the four that it covers. The flag (SWS_FULL_CHR_H_INP) lets libswscale read
# all of them with vector code: half the time of its default, and chroma errs by 0.2 levels instead of 1.
_CHROMA_OF_ALL_PIXELS: Final = 1 << 14
_MEAN: Final = int(Interpolation.AREA) | _CHROMA_OF_ALL_PIXELS


class PictureTooSmall(WanstreamError):
    """No video codec takes a picture of this size."""


class YuvConverter:
    """Turns images into YUV 4:2:0. Kept as long as they come: a new one costs more than an image."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._lock = threading.Lock()

    def planes(self, image: Images) -> Images:
        """uint8 [1.5 H, W] with even H and W from RGB; an odd last row or column is cropped.

        For any thread. Raises PictureTooSmall.
        """
        height, width = image.shape[0] & ~1, image.shape[1] & ~1
        if not (height and width):
            raise PictureTooSmall(
                f"A picture of {image.shape[1]}x{image.shape[0]} pixels cannot be sent, video needs 2x2. "
                "Choose a larger picture size for the camera."
            )
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image[:height, :width]), format="rgb24")
        with self._lock:
            yuv = self._reformatter.reformat(frame, format="yuv420p", interpolation=_MEAN, threads=1)
            planes = yuv.to_ndarray()
        return planes.astype(np.uint8, copy=False)


class _Pixels:
    """An image, which is converted once, by the first encoder that asks."""

    def __init__(self, image: Images, converter: YuvConverter) -> None:
        self.image = image
        self._converter = converter
        self._planes: Images | None = None
        self._lock = threading.Lock()

    def planes(self) -> Images:
        with self._lock:
            if self._planes is None:
                self._planes = self._converter.planes(self.image)
            return self._planes


class Picture:
    """A picture at the moment when it is shown. pts: in 1/90000 s, larger than that of the one before.

    repeated: it was shown before, and nothing new has come.
    """

    def __init__(self, pixels: _Pixels, pts: int, *, repeated: bool = False) -> None:
        self._pixels = pixels
        self.pts = pts
        self.repeated = repeated

    @classmethod
    def of(cls, image: Images, converter: YuvConverter, pts: int) -> "Picture":
        """A new picture. image: uint8 [H, W, 3] RGB."""
        return cls(_Pixels(image, converter), pts)

    def again(self, pts: int) -> "Picture":
        """The same, shown once more."""
        return Picture(self._pixels, pts, repeated=True)

    @property
    def image(self) -> Images:
        """uint8 [H, W, 3] RGB."""
        return self._pixels.image

    def frame(self) -> av.VideoFrame:
        """A new frame on the shared YUV 4:2:0 planes: encoders write into the object, not into the planes.

        For the thread that encodes. Raises PictureTooSmall.
        """
        frame = av.VideoFrame.from_numpy_buffer(self._pixels.planes(), format="yuv420p")
        frame.pts, frame.time_base = self.pts, TIME_BASE
        return frame
