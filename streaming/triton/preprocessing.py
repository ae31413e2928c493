"""Preprocessors of control video that are networks, in a pipeline's Triton model."""

from collections.abc import Callable, Mapping

from streaming.engines.load_plan import LoadPlan
from streaming.errors import WanstreamError
from streaming.triton.sessions import Images


class Preprocessing:
    """Those of one load; each is read when it is wanted for the first time."""

    def __init__(self, parameters: Mapping[str, str]) -> None:
        """parameters: of the pipeline's Triton model."""
        self._parameters = parameters
        self._loaded: dict[str, Callable[[Images], Images]] = {}

    def run(self, name: str, pictures: Images | None) -> Images:
        """What VACE is shown in place of the pictures, uint8 [T, H, W, 3]. Raises WanstreamError."""
        if pictures is None or len(pictures) == 0:
            raise WanstreamError("A preprocessor needs pictures: send them as tensor `video`.")
        if name not in self._loaded:
            # Here, not above: it comes with `export`, which builds upon this package.
            from export.pytorch.preprocessors import load_preprocessor

            self._loaded[name] = load_preprocessor(name, LoadPlan.of(self._parameters))
        return self._loaded[name](pictures)
