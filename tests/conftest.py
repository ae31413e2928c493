"""What tests of several kinds share."""

from pathlib import Path

import pytest

from streaming.engine_set import EngineSet
from tests.engines import export_small


@pytest.fixture(scope="session")
def exported_engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineSet]:
    """A small LongLive, exported once: directory of `models` (checkpoints) and `engines`. Never change it."""
    root = tmp_path_factory.mktemp("exported")
    return root, export_small(root)[1]
