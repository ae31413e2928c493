"""An installation in a place with every character that people have in the names of their directories."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

# What a shell, a list of paths, a URL, a format or the ASCII codec could take for something else; and long.
ODD: Final = "my (projects) ñ 日本 $HOME `id` 'x' \"y\"; a\\b&c|d #1 %s {z} * ? ~!" + "_long" * 22
_SOURCES: Final = ("gateway", "streaming", "export", "model_repository")


def install_checkout(directory: Path) -> str:
    """A checkout of this source in `directory` with a virtual environment; returns its interpreter.

    The environment is as `scripts/setup.sh` makes it, but borrows the packages of this one.
    """
    source = Path(__file__).parents[1]
    for name in _SOURCES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source / name, directory / name, ignore=ignore)
    environment = directory / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    # In this order: the checkout of the borrowed environment comes after that of this one.
    (packages / "_checkout.pth").write_text(f"{directory}\n", encoding="utf-8")
    (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return str(environment / "bin" / "python")
