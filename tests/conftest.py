"""What tests of several kinds share."""

from pathlib import Path

import pytest
from hypothesis import settings

from streaming.engine_set import EngineSet
from tests.engines import export_small

# A deadline would judge how busy the machine is.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def exported_engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineSet]:
    """A small LongLive, exported once: directory of `models` (checkpoints) and `engines`. Never change it."""
    root = tmp_path_factory.mktemp("exported")
    return root, export_small(root)[1]
