"""The depth preprocessor: the network's layout, what its attention does, and where its weights come from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoints.checkpoints import checkpoint_shapes
from export.graphs.depth import DepthConfig, VideoDepth
from export.pytorch.preprocessors import Depth, load_preprocessor, shown_size
from gateway.files.models.artifacts import PREPROCESSORS
from streaming.checkpoints.files import PREPROCESSOR_FILES
from streaming.engines.load_plan import LoadPlan
from streaming.errors import WanstreamError
from tests.random_weights import randomized

TINY = DepthConfig(width=64, layers=4, grid=3, features=32, channels=(32, 32, 32, 64))
NAME = "video-depth-anything"

# Of the released file, one of each kind.
PUBLISHED = {
    "pretrained.cls_token": (1, 1, 384),
    "pretrained.pos_embed": (1, 1370, 384),
    "pretrained.mask_token": (1, 384),
    "pretrained.patch_embed.proj.weight": (384, 3, 14, 14),
    "pretrained.blocks.11.norm1.weight": (384,),
    "pretrained.blocks.0.attn.qkv.weight": (1152, 384),
    "pretrained.blocks.0.attn.proj.bias": (384,),
    "pretrained.blocks.0.ls2.gamma": (384,),
    "pretrained.blocks.0.mlp.fc1.weight": (1536, 384),
    "pretrained.norm.bias": (384,),
    "head.projects.1.weight": (96, 384, 1, 1),
    "head.resize_layers.0.weight": (48, 48, 4, 4),
    "head.resize_layers.3.weight": (384, 384, 3, 3),
    "head.scratch.layer4_rn.weight": (64, 384, 3, 3),
    "head.scratch.refinenet4.resConfUnit1.conv2.bias": (64,),
    "head.scratch.refinenet1.out_conv.weight": (64, 64, 1, 1),
    "head.scratch.output_conv1.weight": (32, 64, 3, 3),
    "head.scratch.output_conv2.0.weight": (32, 32, 3, 3),
    "head.scratch.output_conv2.2.weight": (1, 32, 1, 1),
    "head.motion_modules.1.temporal_transformer.norm.weight": (384,),
    "head.motion_modules.1.temporal_transformer.proj_in.weight": (384, 384),
    "head.motion_modules.2.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q.weight": (
        64,
        64,
    ),
    "head.motion_modules.2.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.bias": (64,),
    "head.motion_modules.3.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe": (
        1,
        32,
        64,
    ),
    "head.motion_modules.0.temporal_transformer.transformer_blocks.0.ff.net.0.proj.weight": (1536, 192),
    "head.motion_modules.0.temporal_transformer.transformer_blocks.0.ff.net.2.weight": (192, 768),
    "head.motion_modules.0.temporal_transformer.transformer_blocks.0.ff_norm.bias": (192,),
    "head.motion_modules.0.temporal_transformer.proj_out.bias": (192,),
}


def tiny() -> VideoDepth:
    return randomized(VideoDepth(TINY))


def film(count: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3), np.uint8)


def plan(models: Path) -> LoadPlan:
    return LoadPlan(engine_set=models, models=models, height=1, width=1, base_seed=0, preprocessors=models)


def write_weights(models: Path, network: VideoDepth) -> None:
    path = models / PREPROCESSOR_FILES[NAME]
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)


def test_the_layout_is_that_of_the_released_file() -> None:
    with torch.device("meta"):
        network = VideoDepth(DepthConfig())
    shapes = checkpoint_shapes(network)

    assert {key: shapes.get(key) for key in PUBLISHED} == PUBLISHED
    assert DepthConfig.from_shapes(shapes) == DepthConfig()


def test_the_weights_come_from_where_the_download_puts_them() -> None:
    ((name, (artifact,)),) = PREPROCESSORS.items()

    assert {name: f"{artifact.repository}/{artifact.files[0]}"} == PREPROCESSOR_FILES


def test_pictures_of_a_call_see_each_other_at_other_times_only_through_the_motion_modules() -> None:
    network, pictures = tiny(), torch.randn(3, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    together = network(pictures)
    assert together.shape == (3, 42, 56)
    assert not torch.allclose(together[:1], network(pictures[:1]), atol=1e-4)

    for module in network.head.motion_modules:
        for parameter in module.temporal_transformer.proj_out.parameters():
            parameter.zero_()

    alone = torch.cat([network(picture[None]) for picture in pictures])
    torch.testing.assert_close(network(pictures), alone, atol=1e-4, rtol=1e-3)


def test_without_places_in_time_the_order_of_the_pictures_does_not_matter() -> None:
    network, pictures = tiny(), torch.randn(3, 3, 42, 42, generator=torch.Generator().manual_seed(0))
    ordered = network(pictures)
    assert not torch.allclose(network(pictures.flip(0)).flip(0), ordered, atol=1e-4)

    for name, parameter in network.named_parameters():
        if name.endswith(".pe"):
            parameter.zero_()

    torch.testing.assert_close(network(pictures.flip(0)).flip(0), network(pictures), atol=1e-4, rtol=1e-3)


def test_four_pictures_at_a_time_become_grey_levels_of_the_whole_range() -> None:
    pictures = film(10)
    depth = Depth(tiny(), short_side=56)

    found = depth(pictures)

    assert (found.shape, found.dtype) == (pictures.shape, np.uint8)
    assert (found[..., 0] == found[..., 1]).all()
    assert [(found[i : i + 4].min(), found[i : i + 4].max()) for i in (0, 4, 8)] == [(0, 255)] * 3
    np.testing.assert_array_equal(found[4:8], depth(pictures[4:8]))


@pytest.mark.parametrize(
    ("picture", "shown"),
    [((512, 512), (518, 518)), ((480, 832), (518, 896)), ((320, 576), (504, 910)), ((576, 320), (910, 504))],
)
def test_the_network_is_shown_the_shape_of_the_picture(
    picture: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert shown_size(*picture, short_side=518) == shown


def test_missing_weights_and_other_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WanstreamError, match=r"Run: download_models --pipeline video-depth-anything\."):
        load_preprocessor(NAME, plan(tmp_path))
    with pytest.raises(WanstreamError, match="There is no preprocessor 'pose' here"):
        load_preprocessor("pose", plan(tmp_path))

    write_weights(tmp_path, tiny())
    torch.save({"a": torch.zeros(1)}, tmp_path / PREPROCESSOR_FILES[NAME])

    with pytest.raises(WanstreamError, match="is not Video-Depth-Anything"):
        load_preprocessor(NAME, plan(tmp_path))


def test_a_file_gives_the_network_that_was_stored(tmp_path: Path) -> None:
    write_weights(tmp_path, tiny())

    loaded = load_preprocessor(NAME, plan(tmp_path))

    assert isinstance(loaded, Depth)
    pictures = torch.randn(1, 3, 42, 42)
    torch.testing.assert_close(loaded.network(pictures), tiny()(pictures))
