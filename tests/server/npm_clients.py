"""A page with WHIP and WHEP clients from npm, as bundled by esbuild."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_INSTALLED = Path(sys.prefix) / "npm"
_SOURCE = Path(__file__).parent / "npm" / "clients.js"


def write_page(directory: Path) -> str:
    """Write the page; its address. Scripts of it find `publish`, `play` and, afterwards, `end`."""
    esbuild = _INSTALLED / "node_modules" / ".bin" / "esbuild"
    if not esbuild.exists():
        pytest.fail("The npm packages of the tests are missing. Run: scripts/setup.sh test")
    bundle, page = directory / "clients.js", directory / "clients.html"
    subprocess.run(
        [esbuild, _SOURCE, "--bundle", f"--outfile={bundle}", "--log-level=error"],
        env=os.environ | {"NODE_PATH": str(_INSTALLED / "node_modules")},
        check=True,
    )
    page.write_text('<video autoplay muted playsinline></video><script src="clients.js"></script>')
    return page.as_uri()
