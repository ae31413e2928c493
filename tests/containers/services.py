"""The compose file, with its variables replaced."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from compose_spec import PyCompose

DOCKER = Path(__file__).resolve().parents[2] / "docker"
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:?-)([^}]*)\}")


def compose(settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The services of the compose file, which is valid.

    settings: values of its variables; without them, the defaults.
    """
    given = {name: str(value) for name, value in (settings or {}).items()}

    def value(match: re.Match[str]) -> str:
        name, operator, default = match.groups()
        unset = name not in given or (operator == ":-" and given[name] == "")
        return default if unset else given[name]

    text = _VARIABLE.sub(value, (DOCKER / "compose.yaml").read_text())
    assert "${" not in text
    merged = yaml.safe_dump(yaml.safe_load(text.replace("$$", "$")))  # compose_spec knows no merge keys
    services: dict[str, Any] = PyCompose.from_yaml(merged).to_dict()["services"]
    return services
