"""Private members of aiortc and aioice that wanstream replaces: whether they are there."""

import importlib.metadata
import inspect


def require_members(owner: object, *names: str) -> None:
    """Raise ImportError unless `owner` has all members `names`. For the import of what replaces them.

    The minor versions in pyproject.toml have them; another one that was installed by hand would fail much
    later, in the middle of a stream.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        module = (
            owner
            if inspect.ismodule(owner)
            else inspect.getmodule(owner if inspect.isclass(owner) else type(owner))
        )
        package = module.__name__.partition(".")[0] if module else "?"
        raise ImportError(
            f"{package} {importlib.metadata.version(package)} has no {', '.join(missing)}, which wanstream "
            "replaces. Install the version that wanstream asks for: pip install --upgrade wanstream"
        )
