"""The graphs of the autoencoders and of the text encoder can be exported, and keep their values and sizes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor

from export.graphs.signature import example
from export.graphs.taehv import TinyVae, TinyVaeConfig
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from export.graphs.vae import VaeConfig, WanVae
from export.graphs.vae_graphs import Autoencoder, DecoderGraph, EncoderGraph
from streaming.network.inputs import TensorSpec
from tests.random_weights import randomized
from tests.unit.graph_rules import assert_exportable

TINY = TinyVaeConfig(encoder_width=4, decoder_widths=(6, 4, 5, 4))
VAES: dict[str, Autoencoder] = {
    "wan": randomized(WanVae(VaeConfig(dim=4))),  # lightvae differs in width only
    "tae": randomized(TinyVae(TINY)),
    "lighttae": randomized(TinyVae(replace(TINY, normalized=True))),
}
HEIGHT, WIDTH = 16, 24


def random_inputs(specs: Sequence[TensorSpec], sizes: dict[str, int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(example(spec, sizes).shape, generator=generator) for spec in specs)


@pytest.mark.parametrize("first", [True, False], ids=["first", "next"])
@pytest.mark.parametrize("graph_class", [EncoderGraph, DecoderGraph])
@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_graph_exports_for_any_number_of_frames(
    name: str, graph_class: type[EncoderGraph] | type[DecoderGraph], first: bool
) -> None:
    graph = graph_class(VAES[name], first)
    signature = graph.signature(HEIGHT, WIDTH)

    program = assert_exportable(
        graph,
        signature.arguments(signature.example({"F": 2, "T": 8})),
        signature.dynamic_shapes() if not first else None,
    )

    for frames in (2, 3) if graph_class is EncoderGraph else (1, 3):
        given = signature.arguments(random_inputs(signature.inputs, {"F": frames, "T": 4 * frames}))
        torch.testing.assert_close(program.module()(**given), graph(**given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "vae", [VAES["lighttae"], randomized(WanVae(VaeConfig(dim=4, num_res_blocks=1)))], ids=["lighttae", "wan"]
)
def test_an_encoder_in_onnx_is_right_for_one_latent_frame_too(vae: Autoencoder, tmp_path: Path) -> None:
    """torch guards an encoder's trace against size 1, ONNX has no guards; live video comes in such steps."""
    graph = EncoderGraph(vae, first=False)
    signature = graph.signature(HEIGHT, WIDTH)
    path = tmp_path / "graph.onnx"
    torch.onnx.export(
        graph,
        f=path,
        kwargs=signature.arguments(signature.example({"F": 2, "T": 8})),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=signature.dynamic_shapes(),
        input_names=[spec.name for spec in signature.inputs],
        output_names=[spec.name for spec in signature.outputs],
        verbose=False,
    )
    inputs = random_inputs(signature.inputs, {"F": 1, "T": 4})

    feed = {spec.name: tensor.numpy() for spec, tensor in zip(signature.inputs, inputs, strict=True)}
    outputs = InferenceSession(path).run([spec.name for spec in signature.outputs], feed)

    actual = tuple(torch.from_numpy(output) for output in outputs)
    torch.testing.assert_close(actual, graph(**signature.arguments(inputs)), rtol=1e-4, atol=1e-5)


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

    arguments = signature.arguments(signature.example({"B": 2}))
    program = assert_exportable(encoder, arguments, signature.dynamic_shapes())

    for prompts in (1, 3):
        ids = torch.arange(12 * prompts).reshape(prompts, 12) % 20
        mask = (torch.arange(12) < torch.arange(1, prompts + 1)[:, None]).long()
        torch.testing.assert_close(
            program.module()(ids=ids, mask=mask), encoder(ids, mask), rtol=1e-4, atol=1e-5
        )
