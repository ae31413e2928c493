"""Prompts to embeddings: one batch for what is new, nothing for what is known."""

from pathlib import Path

import torch
from torch import Tensor

from export.graphs.text_encoder import TextEncoder, TextEncoderConfig
from streaming.conditioning.embedding_cache import EmbeddingCache
from streaming.conditioning.prompt_encoder import PromptEncoder
from streaming.conditioning.tokenizer import PromptTokenizer
from streaming.engines.engine import TorchEngine
from tests.random_weights import randomized
from tests.unit.test_text import LENGTH, VOCABULARY, write_tokenizer

CONFIG = TextEncoderConfig(
    vocab=len(VOCABULARY),
    dim=8,
    dim_attn=8,
    dim_ffn=12,
    num_heads=2,
    num_layers=2,
    num_buckets=8,
    seq_len=LENGTH,
)
ENCODER = randomized(TextEncoder(CONFIG))


class Fixture:
    """An encoder whose batches are counted."""

    def __init__(self, directory: Path, cache: EmbeddingCache | None = None) -> None:
        self.batches: list[int] = []
        tokenizer = PromptTokenizer.from_directory(write_tokenizer(directory), LENGTH)
        engine = TorchEngine(self._run, ("ids", "mask"), ("prompt_embeds",))
        self.encode = PromptEncoder(tokenizer, engine, cache or EmbeddingCache("tiny"))

    def _run(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.batches.append(len(ids))
        result: Tensor = ENCODER(ids, mask)
        return result


def test_prompts_are_encoded_in_one_batch_and_come_out_in_order(tmp_path: Path) -> None:
    one = Fixture(tmp_path)
    alone = [Fixture(tmp_path).encode([text])[0] for text in ("a red panda", "a panda walks")]

    together = one.encode(["a red panda", "a panda walks"])

    assert one.batches == [2]
    assert together[0].shape == (1, LENGTH, CONFIG.dim)
    torch.testing.assert_close(together, alone)


def test_a_known_prompt_is_not_encoded_again_however_it_is_written(tmp_path: Path) -> None:
    one = Fixture(tmp_path)
    first = one.encode(["a red panda"])

    again = one.encode(["a  red\npanda ", "walks", "walks"])

    assert one.batches == [1, 1]
    assert torch.equal(again[0], first[0])
    assert torch.equal(again[1], again[2])


def test_what_the_disk_knows_costs_nothing_after_a_restart(tmp_path: Path) -> None:
    before = Fixture(tmp_path, EmbeddingCache("tiny", tmp_path / "cache")).encode(["a panda"])

    restarted = Fixture(tmp_path, EmbeddingCache("tiny", tmp_path / "cache"))
    after = restarted.encode(["a panda"])

    assert restarted.batches == []
    assert torch.equal(after[0], before[0])
