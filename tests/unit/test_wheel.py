"""What a wheel of the package holds."""

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    directory = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        return set(wheel.namelist())


def test_what_is_served_is_in_the_wheel(names: set[str]) -> None:
    page = {f"gateway/page/{path.name}" for path in (ROOT / "gateway/page").glob("*.html")}
    folders = [ROOT / "export/nano/weights", ROOT / "export/nano/adapters"]
    weights = {str(path.relative_to(ROOT)) for folder in folders for path in folder.iterdir()}

    assert page
    assert page <= names
    assert weights <= names
    assert {"model_repository/longlive/config.pbtxt", "model_repository/longlive/1/model.py"} <= names


def test_training_code_is_not(names: set[str]) -> None:
    assert not {name for name in names if name.startswith("export/nano/") and name.endswith(".py")}
