"""Replays of the text side: the encoder, its position buckets, prompt cleaning. wan.md 6."""

from collections.abc import Callable

import torch

from export.checkpoints.checkpoints import load_weights
from export.graphs.text_encoder import TextEncoder, TextEncoderConfig, relative_position_bucket
from streaming.conditioning.tokenizer import clean_prompt
from tests.golden.case import GoldenCase
from tests.golden.place import Place, in_torch


def t5_encoder(case: GoldenCase, place: Place = in_torch) -> None:
    config = TextEncoderConfig.from_json(case.config)
    with torch.device("meta"):
        encoder = TextEncoder(config)
    load_weights(case.checkpoint(), encoder)
    ids, mask = case.tensors["in.ids"], case.tensors["in.mask"]

    outputs = place(encoder, encoder.signature(), {"B": 2})(ids, mask)
    embeds = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
    results = {"out.encoder": encoder.encode(ids, mask), "out.prompt_embeds": embeds}
    if "in.relative_position" in case.tensors:
        distances = case.tensors["in.relative_position"]
        results["out.bucket"] = relative_position_bucket(distances, config.num_buckets, config.max_distance)

    for name in case.expected():
        case.assert_close(name, results[name])


def text_clean(case: GoldenCase) -> None:
    for entry in case.values["cases"]:
        case.assert_equal(f"cleaned {entry['text']!r}", clean_prompt(entry["text"]), entry["cleaned"])


REPLAYS: dict[str, Callable[[GoldenCase], None]] = {
    "wan.t5_encoder": t5_encoder,
    "wan.text_clean": text_clean,
}
