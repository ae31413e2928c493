"""The demonstration checkpoint, as far as server and export have to agree on it. Torch-free."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from streaming.errors import WanstreamError

OPENING: Final = "longlive"  # the demonstration that a server without engines begins with
DEMO_PIPELINES: Final = (  # what it exports by itself, when somebody chooses it
    OPENING,
    "streamdiffusionv2",
    "reward-forcing",
    "memflow",
    "krea-realtime-video",
)
DEMO_MODELS: Final = "demo-models"  # directory of the checkpoint, below the home directory
DEMO: Final = "demo.json"  # in the checkpoint's directory
TRAINED_CONFIG: Final = "config.json"  # in the directory of the trained weights that come with the package
TRAINED_VACE: Final = "vace.safetensors"  # beside it, if they have a branch


class DemoInfo(BaseModel):
    """Content of demo.json.

    height, width   of the pictures that the checkpoint is meant for, in pixels
    note            a line for users about what it is
    examples        prompts that it understands
    vace            it has a VACE branch
    version         of the package's own weights that were written; empty for weights of somebody else
    """

    model_config = ConfigDict(frozen=True)

    height: int
    width: int
    note: str = ""
    examples: tuple[str, ...] = ()
    vace: bool = False
    version: str = ""

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def trained_directory() -> Path:
    """The trained weights of the package `export`, from which the checkpoint is written."""
    return Path(__file__).parents[2] / "export" / "nano" / "weights"


def demo_adapters() -> Path:
    """The LoRA files of the package `export` for the trained weights."""
    return Path(__file__).parents[2] / "export" / "nano" / "adapters"


def demo_info(models: Path) -> DemoInfo:
    """What the checkpoint in `models` is, or will be once it is written.

    Raises WanstreamError when the installation is damaged.
    """
    try:
        found = read_demo(models)
    except WanstreamError:  # it is not there yet, or will be complained of by the export
        return trained_info()
    return trained_info() if found.version else found


def trained_info() -> DemoInfo:
    """What the weights of the package are. Raises WanstreamError when the installation is damaged."""
    path = trained_directory() / TRAINED_CONFIG
    try:
        found = DemoInfo.model_validate_json(path.read_bytes())
        return found.model_copy(update={"vace": path.with_name(TRAINED_VACE).is_file()})
    except (OSError, ValidationError) as error:
        raise WanstreamError(f"'{path}' is missing or damaged. Install wanstream again.") from error


def read_demo(models: Path) -> DemoInfo:
    """demo.json of a directory of models. Raises WanstreamError when there is none, or it is damaged."""
    path = models / DEMO
    try:
        return DemoInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise WanstreamError(
            f"'{models}' has no {DEMO}, so it is no demonstration checkpoint. Use: --size HEIGHTxWIDTH."
        ) from error
    except ValidationError as error:
        raise WanstreamError(f"'{path}' is damaged: {error.errors()[0]['msg']}. Write it again.") from error
