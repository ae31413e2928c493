"""What is shown of the notes in LoRA files: somebody else's texts, of any kind and length."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.files.loras.notes import Notes, notes_of


def written(path: Path, **metadata: str) -> Path:
    save_file({"a": np.zeros(1, np.float32)}, path, {k.replace("__", "."): v for k, v in metadata.items()})
    return path


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec__trigger_phrase": "in the style of wet ink"}, ("in the style of wet ink",)),
        ({"trigger_words": "ink, wet  paper,, ink"}, ("ink", "wet paper")),
        ({"ss_tag_frequency": json.dumps({"a": {"ink": 3, "cat": 1}, "b": {"cat": 9}})}, ("cat", "ink")),
        ({"trigger_word": "ink", "ss_tag_frequency": json.dumps({"a": {"cat": 9}})}, ("ink",)),
        ({"ss_tag_frequency": "[" * 100_000}, ()),
        ({"ss_tag_frequency": json.dumps({"a": ["ink"], "b": {"ink": "often"}})}, ()),
        (
            {"ss_tag_frequency": json.dumps({"a": {str(i): i for i in range(20)}})},
            tuple(map(str, range(19, 11, -1))),
        ),
        ({}, ()),
    ],
    ids=["a phrase", "words", "tags", "words before tags", "nested", "no counts", "many", "nothing"],
)
def test_words_for_the_prompt_are_those_of_the_file(
    metadata: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    assert notes_of(written(tmp_path / "lora.safetensors", **metadata)).trigger_words == words


def test_title_and_description_are_cut_to_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", modelspec__title="Wet\nink", modelspec__description="x" * 500)

    notes = notes_of(path)

    assert (notes.title, notes.description) == ("Wet ink", "x" * 199 + "…")


def test_a_file_that_vanished_or_is_none_has_no_notes(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("only words")

    assert notes_of(tmp_path / "absent.safetensors") == notes_of(tmp_path / "text.safetensors") == Notes()
