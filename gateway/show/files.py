"""JSON files in the home directory that survive a restart, and may be edited by hand."""

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Final

from gateway.errors import ApiError

NAME_RULE: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
NAME: Final = re.compile(NAME_RULE)
NAME_TEXT: Final = "use up to 64 of a-z, 0-9, - and _, beginning with a letter or digit"


def write_whole(path: Path, document: Any) -> None:
    """Put a file in the place of the one before: whoever reads meanwhile has the old one or the new one.

    Raises ApiError 507.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1, ensure_ascii=False)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise ApiError(507, f"Nothing can be kept in {path.parent}: {error.strerror}") from error
