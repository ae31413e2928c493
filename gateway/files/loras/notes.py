"""What a training program has noted in a LoRA file: title, description, words that call the style forth."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

_TITLES: Final = ("modelspec.title", "ss_output_name", "name")
_DESCRIPTIONS: Final = ("modelspec.description", "description")
_TRIGGERS: Final = (
    "modelspec.trigger_phrase",
    "trigger_phrase",
    "trigger_words",
    "trigger_word",
    "instance_prompt",
)
_TAGS: Final = "ss_tag_frequency"  # JSON: how often each tag occurs, by directory of pictures
_MOST_WORDS: Final = 8
_LONGEST: Final = 200  # characters


@dataclass(frozen=True, slots=True)
class Notes:
    """Texts of somebody else, cut to a length that can be shown."""

    title: str | None = None
    description: str | None = None
    trigger_words: tuple[str, ...] = ()


def notes_of(path: Path) -> Notes:
    """Of a file whose header is right; none where it cannot be read any more."""
    try:
        return _notes(path, path.stat().st_mtime_ns)
    except OSError:
        return Notes()


@lru_cache(maxsize=1024)
def _notes(path: Path, _modified_ns: int) -> Notes:
    try:
        with safe_open(path, framework="np") as file:
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return Notes()
    return Notes(
        title=_first(metadata, _TITLES),
        description=_first(metadata, _DESCRIPTIONS),
        trigger_words=tuple(dict.fromkeys(_trigger_words(metadata)))[:_MOST_WORDS],
    )


def _first(metadata: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    found = (_cut(metadata.get(name, "")) for name in names)
    return next((text for text in found if text), None)


def _trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """What the author calls so; else the tags that occur most often."""
    said = [word for name in _TRIGGERS for word in metadata.get(name, "").split(",")]
    words = [word for word in map(_cut, said) if word]
    return words or _frequent_tags(metadata.get(_TAGS, ""))


def _frequent_tags(text: str) -> list[str]:
    try:
        directories = json.loads(text)
    except (ValueError, RecursionError):
        return []
    counts: Counter[str] = Counter()
    for tags in directories.values() if isinstance(directories, dict) else ():
        counts.update(_counted(tags))
    return [tag for tag, _ in counts.most_common(_MOST_WORDS) if tag]


def _counted(tags: Any) -> dict[str, int]:
    if not isinstance(tags, dict):
        return {}
    return {_cut(tag): count for tag, count in tags.items() if isinstance(count, int)}


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
