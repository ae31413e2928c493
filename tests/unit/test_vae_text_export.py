"""The graphs of the autoencoders and of the text encoder can be exported, and keep their values and sizes."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from export.graphs.signature import TensorSpec
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph
from tests.random_weights import randomized
from tests.unit.graph_rules import assert_exportable

TINY = TinyVaeConfig(encoder_width=4, decoder_widths=(6, 4, 5, 4))
VAES: dict[str, Autoencoder] = {
    "wan": randomized(WanVae(VaeConfig(dim=4))),
    "lightvae": randomized(WanVae(VaeConfig(dim=24, pruning_rate=0.75))),
    "tae": randomized(TinyVae(TINY)),
    "lighttae": randomized(TinyVae(replace(TINY, normalized=True))),
}
HEIGHT, WIDTH = 16, 24


def random_inputs(specs: Sequence[TensorSpec], sizes: dict[str, int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(spec.example(sizes).shape, generator=generator) for spec in specs)


@pytest.mark.parametrize("first", [True, False], ids=["first", "next"])
@pytest.mark.parametrize("graph_class", [EncoderGraph, DecoderGraph])
@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_graph_exports_for_any_number_of_frames(
    name: str, graph_class: type[EncoderGraph] | type[DecoderGraph], first: bool
) -> None:
    graph = graph_class(VAES[name], first)
    signature = graph.signature(HEIGHT, WIDTH)

    program = assert_exportable(
        graph, signature.example({"F": 2, "T": 8}), signature.dynamic_shapes() if not first else None
    )

    # An encoder's trace guards against one latent frame, for which it is right too; ONNX has no guards.
    run = program.module(check_guards=False)
    for frames in (1, 3):
        inputs = random_inputs(signature.inputs, {"F": frames, "T": 4 * frames})
        torch.testing.assert_close(run(*inputs), graph(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("graph_class", [EncoderGraph, DecoderGraph])
@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_graph_holds_the_weights_of_its_half_only(
    name: str, graph_class: type[EncoderGraph] | type[DecoderGraph]
) -> None:
    vae = VAES[name]
    halves = [graph(vae, first=False) for graph in (EncoderGraph, DecoderGraph)]

    counts = [sum(p.numel() for p in half.parameters()) for half in halves]

    assert sum(counts) == sum(p.numel() for p in vae.parameters())
    assert min(counts) > 0


def test_the_text_encoder_exports_for_any_number_of_prompts() -> None:
    encoder = randomized(
        TextEncoder(
            TextEncoderConfig(
                vocab=20, dim=16, dim_attn=24, dim_ffn=20, num_heads=3, num_layers=2, seq_len=12
            )
        )
    )
    signature = encoder.signature()

    program = assert_exportable(encoder, signature.example({"B": 2}), signature.dynamic_shapes())

    for prompts in (1, 3):
        ids = torch.arange(12 * prompts).reshape(prompts, 12) % 20
        mask = (torch.arange(12) < torch.arange(1, prompts + 1)[:, None]).long()
        torch.testing.assert_close(program.module()(ids, mask), encoder(ids, mask), rtol=1e-4, atol=1e-5)
