"""How tests are spread over the processes of `pytest -n`."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

ALONE = tuple(
    f"tests/{name}.py" for name in ("golden/test_exported", "golden/test_golden", "server/test_api_cases")
)


class Spread(LoadScopeScheduling):  # type: ignore[misc]
    """Tests of a module go to one process and share what is slow to make; those of ALONE go one by one.

    The order stays: golden and server tests, which take long, come before the many short ones.
    """

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(ALONE) else nodeid.partition("::")[0]
