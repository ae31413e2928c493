"""Root file systems that stand for the public base images, made of what this machine has.

The Python of the tests is in /usr/local as in `python:3.12-slim-bookworm`, with the programs of a small
Debian. For `tritonserver` the server of the tests' wheel lies where NVIDIA's image has it, without CUDA.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pip

from gateway.embedded.installation import TritonInstallation

# Essential packages that an image of Debian has, and the libraries of Python, Triton and their packages.
_DEBIAN = """
    base-files base-passwd bash coreutils dash debianutils findutils grep hostname libacl1 libattr1
    libaudit1 libbz2-1.0 libc-bin libc6 libcap-ng0 libcom-err2 libcrypt1 libdb5.3 libexpat1 libffi8
    libgcc-s1 libgmp10 libgssapi-krb5-2 libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 liblzma5
    libncursesw6 libnsl2 libpam-modules libpam0g libpcre2-8-0 libreadline8 libselinux1 libsemanage2
    libsepol2 libsqlite3-0 libssl3 libstdc++6 libtinfo6 libtirpc3 libuuid1 login passwd sed tar
    util-linux zlib1g
"""
_NOT_IN_IMAGES = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/info/")
_NOT_OF_PYTHON = (
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "config-*",
    "*.a",
)
_MERGED = ("bin", "sbin", "lib", "lib64")  # directories that are links into /usr


def python_image(root: Path) -> Path:
    """Stand-in for `python:3.12-slim-bookworm`, with the version of Python that the tests have."""
    for name in (*(f"usr/{name}" for name in _MERGED), "tmp", "root", "proc", "sys", "dev", "run", "data"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in _MERGED:
        (root / name).symlink_to(f"usr/{name}")
    _copy_debian(root)
    _copy_python(root / "usr/local")
    _check(root)
    return root


def triton_image(python: Path, root: Path) -> Path:
    """Stand-in for `tritonserver`: that of Python, the server in /opt/tritonserver, and its user."""
    shutil.copytree(python, root, symlinks=True)
    found, server = TritonInstallation.find(), root / "opt/tritonserver"
    backend = server / "backends/python"
    for directory in (backend, server / "bin", server / "libraries"):
        directory.mkdir(parents=True)
    shutil.copy(found.server, server / "bin")
    for source in (*found.backend.iterdir(), found.stub):
        if source.is_file():
            shutil.copy(source, backend)
    for source in found.libraries.iterdir():
        shutil.copy(source, server / "libraries")
    # The libraries of the wheel are NVIDIA's system ones, so they are found without a variable.
    (root / "etc/ld.so.conf.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/ld.so.conf.d/triton.conf").write_text("/usr/local/lib\n/opt/tritonserver/libraries\n")
    subprocess.run(["ldconfig", "-r", root], check=True)
    subprocess.run(["chroot", root, "useradd", "--uid", "1000", "--create-home", "triton-server"], check=True)
    return root


def _copy_debian(root: Path) -> None:
    """The files of the packages, from this machine; accounts and shells as after their installation."""
    # Names differ from release to release; what is missing in the end is found out by `_check`.
    listed = subprocess.run(["dpkg", "-L", *_DEBIAN.split()], capture_output=True, text=True).stdout
    for line in dict.fromkeys(listed.splitlines()):
        source = Path(line)
        if not line.startswith("/") or line.startswith(_NOT_IN_IMAGES) or not os.path.lexists(source):
            continue
        target = root / line.lstrip("/")
        if source.is_dir() and not source.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        elif not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
    (root / "usr/bin/sh").unlink(missing_ok=True)
    (root / "usr/bin/sh").symlink_to("dash")
    subprocess.run(["ldconfig", "-r", root], check=True)


def _copy_python(prefix: Path) -> None:
    """The interpreter of this environment, its standard library and pip."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    library = Path(sysconfig.get_path("stdlib"))
    packages = prefix / f"lib/python{version}/site-packages"
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copytree(library, packages.parent, ignore=shutil.ignore_patterns(*_NOT_OF_PYTHON), symlinks=True)
    shutil.copytree(Path(pip.__file__).parent, packages / "pip")
    shutil.copy(os.path.realpath(sys.executable), prefix / f"bin/python{version}")
    for name in ("python3", "python"):
        (prefix / "bin" / name).symlink_to(f"python{version}")
    (prefix / "bin/pip").write_text('#!/bin/sh\nexec python3 -m pip "$@"\n')
    (prefix / "bin/pip").chmod(0o755)
    shared = TritonInstallation.find().interpreter.find_library_directory()
    shutil.copy(shared / f"libpython{version}.so.1.0", prefix / "lib")
    subprocess.run(["ldconfig", "-r", prefix.parent.parent], check=True)


def _check(root: Path) -> None:
    """The interpreter finds all libraries that packages of the product need."""
    imports = "import bz2, ctypes, lzma, pip, sqlite3, ssl, uuid, venv, zlib"
    found = subprocess.run(
        ["chroot", root, "/usr/local/bin/python3", "-c", imports], capture_output=True, text=True
    )
    assert found.returncode == 0, f"the stand-in for Python's image lacks a library:\n{found.stderr}"
