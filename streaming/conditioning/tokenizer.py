"""Tokenizer of the text encoder: cleaned prompts to token ids. Torch-free.

Rules: wan.md 6.4 and 6.5. The tokenizer's files are local; nothing is downloaded.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from streaming.errors import WanstreamError

Ids = npt.NDArray[np.int64]


def clean_prompt(text: str) -> str:
    """Repair the encoding, unescape HTML twice, make each run of white space one space."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


@dataclass(frozen=True, slots=True)
class TokenizedPrompts:
    """A batch of prompts, padded or cut to one length."""

    ids: Ids  # [B, L], padding at the end
    mask: Ids  # [B, L], 1 for the prompt and its end token, 0 for padding


class PromptTokenizer:
    """The tokenizer of a model directory (`google/umt5-xxl`), for prompts of `length` tokens."""

    def __init__(self, tokenizer: Tokenizer, length: int, pad_token: str, end_token: str) -> None:
        """Raises WanstreamError if a token is unknown or a prompt does not come out with the end token."""
        pad_id, end_id = (tokenizer.token_to_id(token) for token in (pad_token, end_token))
        if pad_id is None or end_id is None:
            absent = pad_token if pad_id is None else end_token
            raise WanstreamError(f"the tokenizer has no token '{absent}'. Download it again.")
        tokenizer.no_padding()
        if tokenizer.encode("").ids != [end_id]:
            raise WanstreamError(
                f"the tokenizer does not end a prompt with '{end_token}', as the text encoder expects it. "
                "Download it again."
            )
        tokenizer.enable_truncation(max_length=length)
        tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad_token)
        self._tokenizer = tokenizer
        self.vocabulary = tokenizer.get_vocab_size()  # ids are below it

    @classmethod
    def from_directory(cls, directory: Path, length: int) -> "PromptTokenizer":
        """Read `tokenizer.json` and `tokenizer_config.json`.

        length: the transformer's `text_len`, in tokens. Raises WanstreamError if a file is absent or damaged.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise WanstreamError(f"tokenizer '{path}' does not exist. Download the models of this pipeline.")
        config_path = directory / "tokenizer_config.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
            config: dict[str, Any] = (
                json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
            )
        except Exception as error:  # the tokenizers library raises nothing more specific
            raise WanstreamError(
                f"tokenizer files in '{directory}' cannot be read ({error}). Delete them and download again."
            ) from error
        pad, end = config.get("pad_token", "<pad>"), config.get("eos_token", "</s>")
        return cls(tokenizer, length, _token_text(pad), _token_text(end))

    def __call__(self, prompts: Sequence[str]) -> TokenizedPrompts:
        """Token ids of cleaned prompts; the end token is appended, also after a cut."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        return TokenizedPrompts(
            ids=np.array([e.ids for e in encodings], dtype=np.int64),
            mask=np.array([e.attention_mask for e in encodings], dtype=np.int64),
        )


def _token_text(token: str | dict[str, Any]) -> str:
    """A special token stands in the file as its text, or as an object with the text in it."""
    return token if isinstance(token, str) else str(token["content"])
