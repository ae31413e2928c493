"""What a Triton server calls itself (`--id`), so that a gateway sees which version its models are of.

python -m streaming.triton.server_id
"""

from importlib.metadata import version
from typing import Final

from streaming.source_version import source_version

PREFIX: Final = "wanstream-"


def server_id() -> str:
    """Of a server whose models run this source."""
    return f"{PREFIX}{version('wanstream')}-{source_version('streaming')[:12]}"


if __name__ == "__main__":
    print(server_id())  # noqa: T201
