"""Prompts to token ids, by a tokenizer as small as the demo model's."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from streaming.conditioning.tokenizer import PromptTokenizer, clean_prompt
from streaming.errors import WanstreamError

VOCABULARY = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "panda": 5, "walks": 6}
LENGTH = 6


def write_tokenizer(directory: Path, ends_prompts: bool = True) -> Path:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends_prompts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", VOCABULARY["</s>"])]
        )
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"pad_token": "<pad>", "eos_token": {"content": "</s>", "lstrip": False}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def tokenize(tmp_path: Path) -> PromptTokenizer:
    return PromptTokenizer.from_directory(write_tokenizer(tmp_path), LENGTH)


def test_a_prompt_is_ended_and_padded(tokenize: PromptTokenizer) -> None:
    tokens = tokenize(["a red panda"])

    assert tokens.ids.tolist() == [[3, 4, 5, 1, 0, 0]]
    assert tokens.mask.tolist() == [[1, 1, 1, 1, 0, 0]]


def test_a_long_prompt_is_cut_and_still_ended(tokenize: PromptTokenizer) -> None:
    tokens = tokenize(["a red panda walks a red panda walks"])

    assert tokens.ids.tolist() == [[3, 4, 5, 6, 3, 1]]
    assert tokens.mask.tolist() == [[1] * LENGTH]


def test_an_empty_prompt_is_just_the_end(tokenize: PromptTokenizer) -> None:
    tokens = tokenize([""])

    assert tokens.ids.tolist() == [[1, 0, 0, 0, 0, 0]]
    assert tokens.mask.tolist() == [[1, 0, 0, 0, 0, 0]]


def test_prompts_of_a_batch_do_not_touch_each_other(tokenize: PromptTokenizer) -> None:
    prompts = ["a", "red panda walks", "", "zebra"]

    together = tokenize(prompts)

    assert together.ids.tolist() == [tokenize([prompt]).ids[0].tolist() for prompt in prompts]
    assert together.mask.tolist() == [tokenize([prompt]).mask[0].tolist() for prompt in prompts]


def test_the_vocabulary_covers_every_id(tokenize: PromptTokenizer) -> None:
    assert tokenize.vocabulary == len(VOCABULARY)


def test_padding_settings_in_the_file_do_not_count(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=9, pad_id=2, pad_token="<unk>")
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(path))

    tokens = PromptTokenizer.from_directory(tmp_path, LENGTH)(["a red panda"])

    assert tokens.ids.tolist() == [[3, 4, 5, 1, 0, 0]]


def test_a_tokenizer_without_end_token_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ends_prompts=False)

    with pytest.raises(WanstreamError, match="does not end a prompt with '</s>'"):
        PromptTokenizer.from_directory(tmp_path, LENGTH)


def test_a_tokenizer_without_padding_token_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')

    with pytest.raises(WanstreamError, match=r"no token '\[PAD\]'"):
        PromptTokenizer.from_directory(tmp_path, LENGTH)


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WanstreamError, match=r"tokenizer\.json' does not exist\. Download"):
        PromptTokenizer.from_directory(tmp_path, LENGTH)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = write_tokenizer(tmp_path) / name
    path.write_text(path.read_text()[:20])

    with pytest.raises(WanstreamError, match=f"'{re.escape(str(tmp_path))}' cannot be read .*download again"):
        PromptTokenizer.from_directory(tmp_path, LENGTH)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A  cat\n\twalks ", "A cat walks"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("\u201ccurly\u201d", '"curly"'),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),
        ("tabs\u00a0and\u3000more", "tabs and more"),
        ("MiXeD CaSe", "MiXeD CaSe"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("", ""),
    ],
)
def test_prompts_are_repaired_and_their_white_space_is_evened(text: str, cleaned: str) -> None:
    assert clean_prompt(text) == cleaned


@given(st.text())
def test_a_cleaned_prompt_has_single_spaces_and_none_at_its_ends(text: str) -> None:
    cleaned = clean_prompt(text)

    assert not re.search(r"\s\s|^\s|\s$|[^\S ]", cleaned)
