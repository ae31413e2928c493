"""A stream that Triton serves beside the same stream in this process: the pictures are the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streaming.specs import VIDEO
from streaming.triton.sessions import Images, Stream
from tests.server.triton_fixtures import ModelClient

Chunks = Sequence[Mapping[str, Any]]  # of each chunk, the parameters that change


@dataclass
class ServedStream:
    """A sequence on a pipeline's model. video: what it gets in video mode, uint8 [T, H, W, 3]."""

    client: ModelClient
    sequence: int
    video: Images
    parameters: dict[str, Any] = field(default_factory=dict)

    async def next(self, changes: Mapping[str, Any]) -> Images:
        """All pictures of the next chunk, uint8 [T, H, W, 3]. The first one starts the sequence."""
        if not self.parameters:
            await self.client.start(self.sequence)
        self.parameters |= changes
        responses = await self.client.generate(self.sequence, self.pictures, **self.parameters)
        return np.concatenate([response.frames for response in responses if response.frames.size])

    @property
    def pictures(self) -> Images | None:
        """The input of the chunk that was made last."""
        return self.video if self.parameters.get("input_mode") == VIDEO else None


async def assert_like_in_process(
    served: ServedStream, local: Stream, chunks: Chunks, size: tuple[int, int]
) -> list[Images]:
    """Make these chunks in both places, and compare. size: height and width. Returns the served pictures."""
    made = []
    for changes in chunks:
        made.append(await served.next(changes))
        groups = local.next_chunk(served.parameters, served.pictures, lambda: False)
        expected = np.concatenate([images for images, _ in groups])
        difference = np.abs(made[-1].astype(int) - expected.astype(int))
        assert made[-1].shape[1:] == (*size, 3)
        assert difference.max() <= 1, f"{changes}: {difference.max()}"
        assert made[-1].std() > 5  # not one colour: the comparison means something
    return made
