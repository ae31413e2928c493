"""Models that do not go, as a pipeline meets them; Triton's Python package exists in its processes only."""

import importlib
import sys
from types import ModuleType

import pytest

from streaming.errors import WanstreamError


class TritonModelException(Exception):
    """What Triton's package raises."""


class Server(ModuleType):
    """Triton's package, where models stay loaded."""

    TritonModelException = TritonModelException

    def __init__(self, *, refuses: bool) -> None:
        super().__init__("triton_python_backend_utils")
        self._refuses = refuses

    def is_model_ready(self, model_name: str) -> bool:
        return True

    def unload_model(self, model_name: str) -> None:
        if self._refuses:
            raise TritonModelException("in use")


@pytest.mark.parametrize(
    ("refuses", "message"), [(True, "cannot be unloaded: in use"), (False, "still there 0.1 s after")]
)
def test_an_unload_that_never_ends_is_an_error(
    refuses: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Server(refuses=refuses))
    monkeypatch.delitem(sys.modules, "streaming.triton.triton_model", raising=False)
    models = importlib.import_module("streaming.triton.triton_model").TritonModels(unload_s=0.1)
    monkeypatch.delitem(sys.modules, "streaming.triton.triton_model")

    with pytest.raises(WanstreamError, match=message):
        models.unload("transformer")
