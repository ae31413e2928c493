"""Notations of other programs in prompts, such as `(word:1.3)`: plain words here, which is worth a hint."""

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.http.validation import quoted

PLAIN_WORDS: Final = "plain_words"  # type of the remark

_TAG: Final = re.compile(r"<(?:lora|lyco|lycoris|hypernet|embedding|ti):[^<>]*>", re.IGNORECASE)
_EMPHASIS: Final = re.compile(
    r"\([^()]*[^()\d]:\s*[+-]?\d*\.?\d+\s*\)"  # (word:1.3), but not a time of day
    r"|\(\([^()]+\)\)"  # ((word))
    r"|\[[^\[\]]*[^\[\]\d]:\s*\d*\.?\d+\s*\]"  # [word:0.5], [from:to:0.5]
)


def hint_at(name: str, value: Any) -> str | None:
    """What to do instead of a notation that somebody may have meant; None: there is none.

    name, value: of a valid parameter.
    """
    if name == "transition":
        value = value["target_prompts"] if isinstance(value, Mapping) else None
    elif name != "prompts":
        return None
    for prompt in value or ():
        if found := _TAG.search(prompt["text"]):
            return (
                f"'{quoted(found[0])}' is read as plain words: LoRA files are chosen when a pipeline is "
                "loaded (loras) and weighted by lora_scales"
            )
        if found := _EMPHASIS.search(prompt["text"]):
            return (
                f"'{quoted(found[0])}' is read as plain words: parts of a prompt have no weights here; give "
                "several prompts, each with a weight"
            )
    return None
