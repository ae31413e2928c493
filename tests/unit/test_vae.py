"""The autoencoders: streams equal whole clips, caches are as announced, checkpoints decide the sizes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.checkpoints.checkpoints import checkpoint_shapes
from export.checkpoints.load import load_vae
from export.graphs.signature import Values, example
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph, decode, encode
from streaming.checkpoints.files import CheckpointError
from streaming.errors import WanstreamError
from streaming.network.video import FrameGroups
from streaming.specs import VaeType
from tests.frame_groups import TINY_GROUPS, WAN_GROUPS
from tests.random_weights import randomized

TINY = TinyVaeConfig(encoder_width=4, decoder_widths=(6, 4, 5, 4))
OTHER = VaeConfig(dim=4, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, False))
VAES: dict[str, Autoencoder] = {
    "wan": randomized(WanVae(VaeConfig(dim=4))),
    "lightvae": randomized(WanVae(VaeConfig(dim=24, pruning_rate=0.75))),
    "wan_other_shape": randomized(WanVae(OTHER)),
    "tae": randomized(TinyVae(TINY)),
    "lighttae": randomized(TinyVae(replace(TINY, normalized=True))),
}
HEIGHT, WIDTH = 16, 24

every_vae = pytest.mark.parametrize("name", VAES)
group_counts = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def pixels(vae: Autoencoder, groups: int, seed: int = 0) -> Tensor:
    """A clip of as many frames as give `groups` latent frames, in [-1, 1]."""
    frames = vae.groups.first + (groups - 1) * vae.groups.later
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, frames, HEIGHT, WIDTH, generator=generator) * 2 - 1


def latents(vae: Autoencoder, frames: int, seed: int = 0) -> Tensor:
    h, w = HEIGHT // vae.spatial_factor, WIDTH // vae.spatial_factor
    return torch.randn(1, vae.z_dim, frames, h, w, generator=torch.Generator().manual_seed(seed))


def parts(clip: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    return [clip[:, :, start:end] for start, end in pairwise([0, *accumulate(lengths)])]


def assert_all_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)  # rounding; a wrong cache shows at 3e-2


@every_vae
@settings(max_examples=12, deadline=None)
@given(groups=group_counts, seed=st.integers(0, 1000))
def test_encoding_in_calls_equals_encoding_at_once(name: str, groups: list[int], seed: int) -> None:
    vae = VAES[name]
    clip = pixels(vae, sum(groups), seed)
    first, *later = (count * vae.groups.later for count in groups)
    lengths = [first - vae.groups.later + vae.groups.first, *later]
    whole_z, whole_mu, whole_caches = encode(vae, clip)

    caches: Values | None = None
    zs, mus = [], []
    for part in parts(clip, lengths):
        z, mu, caches = encode(vae, part, caches)
        zs.append(z)
        mus.append(mu)

    assert_all_close([torch.cat(zs, 2), torch.cat(mus, 2)], [whole_z, whole_mu])
    assert_all_close(caches or (), whole_caches)


@every_vae
@settings(max_examples=12, deadline=None)
@given(lengths=group_counts, seed=st.integers(0, 1000))
def test_decoding_in_calls_equals_decoding_at_once(name: str, lengths: list[int], seed: int) -> None:
    vae = VAES[name]
    z = latents(vae, sum(lengths), seed)
    whole, whole_caches = decode(vae, z, clamp=False)

    caches: Values | None = None
    frames = []
    for part in parts(z, lengths):
        clip, caches = decode(vae, part, caches, clamp=False)
        frames.append(clip)

    assert_all_close([torch.cat(frames, 2)], [whole])
    assert_all_close(caches or (), whole_caches)


@pytest.mark.parametrize("name", ["wan", "lightvae", "wan_other_shape", "tae"])
def test_a_stream_in_the_form_for_the_cpu_is_the_same(name: str) -> None:
    vae = VAES[name]
    clip, z = pixels(vae, 4), latents(vae, 4)
    starts = [0, *range(vae.groups.first, clip.shape[2], vae.groups.later), clip.shape[2]]
    expected = [encode(vae, clip)[1], decode(vae, z, clamp=False)[0]]

    results = []
    for graph_class, parts in (
        (EncoderGraph, [clip[:, :, a:b] for a, b in pairwise(starts)]),
        (DecoderGraph, z.split(1, dim=2)),
    ):
        caches: Sequence[Tensor] = ()
        outputs = []
        for i, part in enumerate(parts):
            graph = graph_class(vae, first=i == 0, form="cpu")
            names = [spec.name for spec in graph.signature(HEIGHT, WIDTH).outputs]
            values = dict(zip(names, graph(part, tuple(caches)), strict=True))
            caches = [value for key, value in values.items() if key.startswith("new_cache_")]
            outputs.append(values["mu"] if "mu" in values else values["frames"])
        results.append(torch.cat(outputs, dim=2))

    assert_all_close(results[:1], expected[:1])
    assert_all_close(results[1:], [expected[1].clamp(-1, 1)])


@every_vae
def test_the_first_latent_frame_gives_one_picture_and_later_ones_a_group(name: str) -> None:
    vae = VAES[name]

    first, caches = decode(vae, latents(vae, 1))
    later, _ = decode(vae, latents(vae, 2), caches)

    assert first.shape == (1, 3, 1, HEIGHT, WIDTH)
    assert later.shape == (1, 3, 2 * vae.groups.later, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("vae_type", "groups"),
    [("wan", WAN_GROUPS), ("lightvae", WAN_GROUPS), ("tae", TINY_GROUPS), ("lighttae", TINY_GROUPS)],
)
def test_the_loop_and_the_modules_cut_frames_alike(vae_type: VaeType, groups: FrameGroups) -> None:
    assert VAES[vae_type].groups == groups


@every_vae
def test_decoded_pictures_are_in_range(name: str) -> None:
    vae = VAES[name]

    frames, _ = decode(vae, 100 * latents(vae, 2))

    assert frames.min() >= -1
    assert frames.max() <= 1
    assert frames.abs().max() > 0.5


@every_vae
def test_later_frames_do_not_change_earlier_latents(name: str) -> None:
    vae = VAES[name]
    clip = pixels(vae, 3)
    changed = torch.cat([clip[:, :, : -vae.groups.later], -clip[:, :, -vae.groups.later :]], dim=2)

    z, changed_z = encode(vae, clip)[0], encode(vae, changed)[0]

    torch.testing.assert_close(changed_z[:, :, :2], z[:, :, :2])
    assert not torch.allclose(changed_z[:, :, 2], z[:, :, 2])


@pytest.mark.parametrize("first", [True, False], ids=["first", "next"])
@pytest.mark.parametrize("graph_class", [EncoderGraph, DecoderGraph])
@every_vae
def test_a_graph_gives_the_tensors_that_its_signature_names(
    name: str, graph_class: type[EncoderGraph] | type[DecoderGraph], first: bool
) -> None:
    vae = VAES[name]
    graph = graph_class(vae, first)
    signature = graph.signature(HEIGHT, WIDTH)
    sizes = {"F": 2, "T": 2 * vae.groups.later}

    outputs = graph(**signature.arguments(signature.example(sizes)))

    shapes = [tuple(example(spec, sizes).shape) for spec in signature.outputs]
    assert [tuple(t.shape) for t in outputs] == shapes
    new_caches = [spec for spec in signature.outputs if spec.name.startswith("new_cache_")]
    taken = [spec for spec in signature.inputs if spec.group == "cache"]
    assert [(f"new_{spec.name}", spec.shape) for spec in taken] == (
        [] if first else [(spec.name, spec.shape) for spec in new_caches]
    )


# Channels of each slot, and the picture's height over the slot's, by the tables of wan.md 5.5 and 5.6.
DECODER_SLOTS = (
    [(16, 8)] + [(384, 8)] * 11 + [(192, 4)] + [(384, 4)] * 6 + [(192, 2)] * 6 + [(96, 1)] * 7
)  # fmt: skip
ENCODER_SLOTS = (
    [(3, 1)] + [(96, 1)] * 4 + [(96, 2)] + [(192, 2)] * 3 + [(192, 4)] * 2 + [(384, 4)] * 3 + [(384, 8)] * 10
)  # fmt: skip


@pytest.mark.parametrize(
    ("graph_class", "slots", "one_frame"),
    [(DecoderGraph, DECODER_SLOTS, []), (EncoderGraph, ENCODER_SLOTS, [9, 14])],
)
def test_the_wan_vae_has_the_caches_of_the_specification(
    graph_class: type[EncoderGraph] | type[DecoderGraph], slots: list[tuple[int, int]], one_frame: list[int]
) -> None:
    with torch.device("meta"):
        vae = WanVae(VaeConfig())

    caches = graph_class(vae, first=False).signature(480, 832).inputs[1:]

    assert [(spec.shape[1], 480 // int(spec.shape[3])) for spec in caches] == slots
    assert [i for i, spec in enumerate(caches) if spec.shape[2] == 1] == one_frame


@pytest.mark.parametrize("name", ["wan", "lightvae"])
def test_frames_of_an_incomplete_group_are_dropped(name: str) -> None:
    vae = VAES[name]
    clip = pixels(vae, 3)

    with_surplus, _, _ = encode(vae, clip[:, :, :-1])

    torch.testing.assert_close(with_surplus, encode(vae, clip[:, :, :-4])[0])


@pytest.mark.parametrize("name", ["tae", "lighttae"])
def test_an_incomplete_group_is_filled_with_its_last_frame(name: str) -> None:
    vae = VAES[name]
    clip = pixels(vae, 2)[:, :, :6]

    filled, _, _ = encode(vae, clip)

    by_hand = torch.cat([clip, clip[:, :, -1:], clip[:, :, -1:]], dim=2)
    torch.testing.assert_close(filled, encode(vae, by_hand)[0])


def test_too_few_frames_for_a_later_call_are_refused() -> None:
    vae = VAES["wan"]
    _, _, caches = encode(vae, pixels(vae, 1))

    with pytest.raises(WanstreamError, match="3 video frames are too few to encode: send at least 4"):
        encode(vae, pixels(vae, 2)[:, :, :3], caches)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vae_type", ["wan", "lightvae", "tae", "lighttae"])
def test_a_reduced_type_stays_near_float32_and_keeps_its_type(
    vae_type: VaeType, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = save(VAES[vae_type], tmp_path)
    reduced, exact = (load_vae(path, vae_type, kind) for kind in (dtype, torch.float32))
    z = latents(exact, 2)

    frames, caches = decode(reduced, z.to(dtype))

    assert {tensor.dtype for tensor in (frames, *caches)} == {dtype}
    assert (frames.float() - decode(exact, z)[0]).abs().mean() < 0.02


def save(vae: Autoencoder, directory: Path) -> Path:
    path = directory / "vae.pth"
    torch.save(vae.state_dict(), path)
    return path


@pytest.mark.parametrize("vae_type", ["wan", "lightvae", "tae", "lighttae"])
def test_a_checkpoint_file_decides_the_sizes(vae_type: VaeType, tmp_path: Path) -> None:
    original = VAES[vae_type]
    z = latents(original, 2)

    loaded = load_vae(save(original, tmp_path), vae_type)

    torch.testing.assert_close(decode(loaded, z)[0], decode(original, z)[0], rtol=0, atol=0)


def test_of_a_wider_grow_weight_the_last_channels_count(tmp_path: Path) -> None:
    state = VAES["tae"].state_dict()
    extra = {key: torch.cat([-tensor, tensor]) for key, tensor in state.items() if is_grow(key)}
    path = tmp_path / "taew2_1.pth"
    torch.save(state | extra, path)
    z = latents(VAES["tae"], 2)

    loaded = load_vae(path, "tae")

    assert len(extra) == 3
    torch.testing.assert_close(decode(loaded, z)[0], decode(VAES["tae"], z)[0], rtol=0, atol=0)


def is_grow(key: str) -> bool:
    return key in ("decoder.7.conv.weight", "decoder.13.conv.weight", "decoder.19.conv.weight")


@pytest.mark.parametrize(("saved", "asked"), [("tae", "wan"), ("wan", "lighttae")])
def test_a_file_of_another_autoencoder_is_refused(saved: str, asked: VaeType, tmp_path: Path) -> None:
    path = save(VAES[saved], tmp_path)

    with pytest.raises(CheckpointError, match=r"vae\.pth' is not a .*Download it again"):
        load_vae(path, asked)


@pytest.mark.parametrize(
    ("build", "tensors", "parameters"),
    [
        (lambda: WanVae(VaeConfig()), 194, 126_892_531),
        (lambda: WanVae(VaeConfig(pruning_rate=0.75)), 194, 8_035_003),
        (lambda: TinyVae(TinyVaeConfig()), 128, 11_315_539),
    ],
    ids=["wan", "lightvae", "tae"],
)
def test_the_default_sizes_are_those_of_the_real_checkpoints(
    build: Callable[[], Autoencoder], tensors: int, parameters: int
) -> None:
    with torch.device("meta"):
        shapes = checkpoint_shapes(build())

    assert len(shapes) == tensors
    assert sum(map(prod, shapes.values())) == parameters


@pytest.mark.parametrize(
    ("config_class", "config"), [(VaeConfig, {"attn_scales": [0.5]}), (TinyVaeConfig, {"patch_size": 2})]
)
def test_a_config_of_another_network_is_refused(config_class: type, config: dict[str, object]) -> None:
    with pytest.raises(WanstreamError, match=r"Wan2\.1"):
        config_class.from_json(config)
