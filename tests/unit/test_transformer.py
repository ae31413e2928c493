"""Properties of the transformer: caches, masks and chunks that must not change a result."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from export.graphs.transformer import TextKV, Transformer
from export.pytorch.pipeline import stream_sizes
from streaming.cache.attention_bias import HIDDEN, visible
from streaming.checkpoints.config import TransformerConfig
from streaming.conditioning.conditions import Conditions
from streaming.errors import WanstreamError
from streaming.network.tokens import patchify, rope_tables, time_sinusoid, unpatchify
from streaming.network.transformer import TransformerCall
from tests.random_weights import randomized
from tests.transformer_inputs import empty_caches, pad_prompt

CONFIG = TransformerConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, text_dim=12, text_len=6, in_dim=4, out_dim=4
)
ROWS, COLUMNS = 1, 2  # tokens of a latent frame
TOKENS = ROWS * COLUMNS
ROPED, UNROPED = randomized(Transformer(CONFIG)), randomized(Transformer(CONFIG, unroped_cache=True))
CROSS_KV = randomized(TextKV(CONFIG))(torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(5)))
Layers = list[Tensor]


def call(
    transformer: Transformer,
    latents: Tensor,
    timestep: Tensor,
    positions: Sequence[int],
    kv: Sequence[Tensor],
    bias: Tensor | None = None,
    cached_positions: Sequence[int] = (),
) -> tuple[Tensor, Sequence[Tensor]]:
    """Flow, and new keys and values; without a bias all keys are seen."""
    past, new = kv[0].shape[2], latents.shape[1] * TOKENS
    made = TransformerCall(
        stream_sizes(CONFIG),
        latents,
        timestep,
        positions,
        Conditions(CROSS_KV),
        kv,
        visible(range(past), past, new) if bias is None else bias,
        cached_positions,
    )
    signature = transformer.signature(past)
    inputs = made.inputs([spec.name for spec in signature.inputs])
    flow, *new_kv = transformer(**signature.arguments(inputs.values()))
    return made.flow(flow), new_kv


def random_latents(frames: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, frames, CONFIG.in_dim, 2 * ROWS, 2 * COLUMNS, generator=generator)


def random_cache(tokens: int, seed: int) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(z.shape, generator=generator) for z in empty_caches(CONFIG, tokens, torch.zeros(1))]


def denoise(
    latents: Tensor,
    kv: Sequence[Tensor],
    bias: Tensor | None = None,
    start: int = 0,
    timestep: Tensor | None = None,
) -> tuple[Tensor, Sequence[Tensor]]:
    frames = latents.shape[1]
    t = torch.full((1, frames), 500.0) if timestep is None else timestep
    return call(ROPED, latents, t, range(start, start + frames), kv, bias)


def assert_same(actual: tuple[Tensor, Sequence[Tensor]], expected: tuple[Tensor, Sequence[Tensor]]) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(list(actual[1]), list(expected[1]), rtol=1e-4, atol=1e-5)


SEEDS = st.integers(0, 999)
FRAMES = st.integers(1, 4)


@settings(deadline=None, max_examples=30)
@given(past=st.integers(0, 8), spare=st.integers(1, 8), frames=FRAMES, seed=SEEDS)
def test_hidden_slots_of_a_static_cache_count_for_nothing(
    past: int, spare: int, frames: int, seed: int
) -> None:
    latents, kv = random_latents(frames, seed), random_cache(past + spare, seed)

    static = denoise(latents, kv, visible(range(past), past + spare, frames * TOKENS))

    assert_same(static, denoise(latents, [layer[:, :, :past] for layer in kv]))


@settings(deadline=None, max_examples=30)
@given(data=st.data(), slots=st.integers(1, 10), frames=FRAMES, seed=SEEDS)
def test_the_order_of_cache_slots_does_not_matter(
    data: st.DataObject, slots: int, frames: int, seed: int
) -> None:
    order = data.draw(st.permutations(range(slots)))
    shown = data.draw(st.sets(st.sampled_from(range(slots))))
    latents, kv = random_latents(frames, seed), random_cache(slots, seed)

    permuted = denoise(
        latents,
        [layer[:, :, order] for layer in kv],
        visible([i for i, slot in enumerate(order) if slot in shown], slots, frames * TOKENS),
    )

    assert_same(permuted, denoise(latents, kv, visible(sorted(shown), slots, frames * TOKENS)))


@settings(deadline=None, max_examples=30)
@given(chunks=st.lists(st.integers(1, 3), min_size=1, max_size=4), start=st.integers(0, 1000), seed=SEEDS)
def test_chunks_with_a_cache_equal_one_block_causal_pass(chunks: list[int], start: int, seed: int) -> None:
    total = sum(chunks)
    latents = random_latents(total, seed)
    timestep = 1000 * torch.rand(1, total, generator=torch.Generator().manual_seed(seed))
    chunk_of_token = torch.tensor([k for k, n in enumerate(chunks) for _ in range(n * TOKENS)])
    future = chunk_of_token[None, :] > chunk_of_token[:, None]
    bias = torch.zeros(1, 1, total * TOKENS, total * TOKENS).masked_fill(future, HIDDEN)

    kv = random_cache(0, seed)
    flows, first = [], 0
    for n in chunks:
        part = slice(first, first + n)
        flow, new_kv = denoise(latents[:, part], kv, start=start + first, timestep=timestep[:, part])
        kv = [torch.cat([old, new], dim=2) for old, new in zip(kv, new_kv, strict=True)]
        flows.append(flow)
        first += n

    whole = denoise(latents, random_cache(0, seed), bias, start, timestep)
    assert_same((torch.cat(flows, dim=1), kv), whole)


@settings(deadline=None, max_examples=30)
@given(past=st.integers(0, 4), frames=FRAMES, start=st.integers(0, 1000), seed=SEEDS)
def test_keys_may_be_cached_before_the_rotary_encoding(past: int, frames: int, start: int, seed: int) -> None:
    old, new = random_latents(max(past, 1), seed), random_latents(frames, seed + 1)
    clean, noisy = torch.zeros(1, max(past, 1)), torch.full((1, frames), 750.0)
    old_positions = range(start, start + max(past, 1))
    new_positions = range(start + past, start + past + frames)
    flows = []
    for transformer in (ROPED, UNROPED):
        _, kv = call(transformer, old, clean, old_positions, random_cache(0, seed))
        kv = [layer[:, :, : past * TOKENS] for layer in kv]
        cached = old_positions[:past]
        flows.append(call(transformer, new, noisy, new_positions, kv, cached_positions=cached)[0])

    torch.testing.assert_close(flows[1], flows[0], rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(copies=st.integers(2, 5), past=st.integers(1, 6), seed=SEEDS)
def test_a_key_bias_of_log_n_counts_a_key_n_times(copies: int, past: int, seed: int) -> None:
    latents, kv = random_latents(2, seed), random_cache(past, seed)
    bias = torch.zeros(1, 1, 1, past + 2 * TOKENS)
    bias[..., :past] = math.log(copies)

    repeated = [torch.cat([layer] * copies, dim=2) for layer in kv]

    assert_same(denoise(latents, kv, bias), denoise(latents, repeated))


@settings(deadline=None, max_examples=30)
@given(timesteps=st.lists(st.floats(0, 1000), min_size=2, max_size=4), seed=SEEDS)
def test_each_frame_is_modulated_by_its_own_timestep(timesteps: list[float], seed: int) -> None:
    count = len(timesteps)
    latents, t = random_latents(count, seed), torch.tensor([timesteps])
    frame = torch.arange(count).repeat_interleave(TOKENS)
    apart = torch.zeros(1, 1, count * TOKENS, count * TOKENS)
    apart = apart.masked_fill(frame[None, :] != frame[:, None], HIDDEN)

    together, _ = denoise(latents, random_cache(0, 0), apart, timestep=t)

    for i in range(count):
        one = slice(i, i + 1)
        alone, _ = denoise(latents[:, one], random_cache(0, 0), start=i, timestep=t[:, one])
        torch.testing.assert_close(together[:, one], alone, rtol=1e-4, atol=1e-5)


def test_a_constant_added_to_all_positions_changes_nothing() -> None:
    latents = random_latents(3, 0)
    t, nothing = torch.full((1, 3), 500.0), random_cache(0, 0)

    flows = [call(ROPED, latents, t, range(s, s + 3), nothing)[0] for s in (0, 500)]

    torch.testing.assert_close(flows[0], flows[1], rtol=1e-3, atol=1e-4)


def test_prompt_padding_takes_part_in_cross_attention() -> None:
    text_kv = randomized(TextKV(CONFIG))
    prompt = torch.randn(1, 3, CONFIG.text_dim, generator=torch.Generator().manual_seed(0))

    kv = text_kv(pad_prompt(prompt, CONFIG.text_len))

    assert kv[0].shape == (2, 1, CONFIG.text_len, CONFIG.num_heads, CONFIG.head_dim)
    assert (kv[0][:, :, 3:] != 0).all()


@given(frames=FRAMES, rows=st.integers(1, 4), columns=st.integers(1, 4), seed=SEEDS)
def test_patchify_gives_the_input_of_the_convolution(frames: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, frames, 4, 2 * rows, 2 * columns, generator=generator)
    kernel = torch.randn(5, 4, 1, 2, 2, generator=generator)

    tokens = patchify(latents) @ kernel.flatten(1).t()

    convolved = F.conv3d(latents.transpose(1, 2), kernel, stride=(1, 2, 2))
    torch.testing.assert_close(tokens, convolved.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


@given(frames=FRAMES, rows=st.integers(1, 4), columns=st.integers(1, 4), seed=SEEDS)
def test_unpatchify_puts_every_token_back(frames: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, frames, 4, 2 * rows, 2 * columns, generator=generator)

    channel_last = patchify(latents).unflatten(2, (4, 4)).transpose(2, 3).flatten(2)

    assert torch.equal(unpatchify(channel_last, 2 * rows, 2 * columns), latents)


@given(frame=st.integers(0, 1023), head_dim=st.sampled_from([12, 16, 28, 128]))
def test_rotary_tables_are_those_of_complex_numbers_in_float64(frame: int, head_dim: int) -> None:
    third = head_dim // 6
    cos, sin = rope_tables([frame], 2, 3, head_dim)

    for token, (y, x) in enumerate((y, x) for y in range(2) for x in range(3)):
        count = head_dim // 2 - 2 * third
        angles = [frame * 10000 ** (-j / count) for j in range(count)]
        angles += [y * 10000 ** (-j / third) for j in range(third)]
        angles += [x * 10000 ** (-j / third) for j in range(third)]
        assert cos[token].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-7)
        assert sin[token].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-7)


@given(t=st.floats(0, 1000), half=st.sampled_from([1, 8, 128]))
def test_time_vector_has_cosines_first_and_float64_angles(t: float, half: int) -> None:
    vector = time_sinusoid(torch.tensor([[t]], dtype=torch.float64), 2 * half)

    angles = [t * 10000 ** (-j / half) for j in range(half)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    assert vector.dtype is torch.float32
    assert vector[0, 0].tolist() == pytest.approx(expected, abs=1e-6)


REAL_CONFIG = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30, "_class_name": "WanModel"}


def test_a_config_file_ignores_unknown_keys_and_takes_defaults() -> None:
    config = TransformerConfig.from_json(REAL_CONFIG)

    assert (config.dim, config.head_dim, config.text_len, config.patch_size) == (1536, 128, 512, (1, 2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "i2v"}, "model_type = 'i2v'"),
        ({"qk_norm": False}, "qk_norm = False"),
        ({"num_heads": 7}, "dim 1536 does not split into 7 heads"),
        ({"patch_size": [2, 2, 2]}, "patch_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"dim": "wide"}, "dim"),
    ],
)
def test_a_config_of_another_network_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(WanstreamError, match=message):
        TransformerConfig.from_json(REAL_CONFIG | change)


def test_a_config_without_sizes_names_them() -> None:
    with pytest.raises(WanstreamError, match=r"lacks ffn_dim, num_heads"):
        TransformerConfig.from_json({"dim": 64, "num_layers": 2})
