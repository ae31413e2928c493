"""The shipped VACE branch in the product's loop, judged by the pixels."""

import pytest

from benchmarks.nano_vace import NEAR, Stream, control, distance, modules
from export.nano.world import Scene
from streaming.triton.model_pipeline import ModelPipeline

SIZE = (96, 96)
SCENE = Scene("", "red", "circle", "stays still", "blue")
PLACE = (30.0, 60.0)


@pytest.fixture(scope="module")
def pipeline() -> ModelPipeline:
    return modules(None)


def test_the_object_is_where_the_silhouette_of_the_control_video_is(pipeline: ModelPipeline) -> None:
    stream, found = Stream(pipeline, 5), []

    for chunk in range(2):
        centres = [(PLACE[0] + 1.5 * (12 * chunk + t), PLACE[1]) for t in range(12)]
        video = control("silhouette", SCENE.shape, centres, 18, SIZE)
        last = stream.chunk(SCENE.prompt, video)[-1]
        # A first chunk shows nine pictures of the thirteen that its control frames are spread over.
        found.append(distance(last, SCENE, centres[7 if chunk == 0 else 11]))

    assert max(found) <= NEAR
