"""driver.py DIRECTORY: write stand-ins for the two libraries of NVIDIA's driver.

With them the plug-in can be loaded where there is no driver. Each function returns an error. Which functions:
whatever the plug-in's libraries import by these prefixes. Needs the environment that has the plug-in.
"""

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Prefix of the functions, and what they return: CUDA_ERROR_NO_DEVICE, NVML_ERROR_DRIVER_NOT_LOADED.
PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
LIBRARIES = {"libcuda.so.1": ("cu", 100), "libnvidia-ml.so.1": ("nvml", 9)}
_SECTIONS_AT, _SECTION_SIZE_AT = 40, 58  # in an ELF header
_DYNAMIC_SYMBOLS = 11
_SYMBOL_BYTES = 24


def installed() -> Path:
    """Directory of the plug-in."""
    return next(path for entry in sys.path if (path := Path(entry, PACKAGE)).is_dir())


def build_stand_ins(package: Path, directory: Path) -> None:
    """Compile the libraries, for those of the plug-in in `package`, into `directory`."""
    libraries = [path for path in package.glob("lib*.so*") if not path.is_symlink()]
    names = sorted({name for path in libraries for name in imported(path)})
    for library, (prefix, error) in LIBRARIES.items():
        own = [name for name in names if name.startswith(prefix) and not name.startswith("cuda")]
        source, target = directory / f"{library}.c", directory / library
        source.write_text("".join(f"int {name}(void) {{ return {error}; }}\n" for name in own))
        options = ["-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(target), str(source)]
        subprocess.run(["cc", *options], check=True)


def imported(path: Path) -> Iterator[str]:
    """Names that an ELF library takes from others."""
    data = path.read_bytes()
    (at,) = struct.unpack_from("<Q", data, _SECTIONS_AT)
    size, count = struct.unpack_from("<HH", data, _SECTION_SIZE_AT)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(count)]
    for section in sections:
        if section[1] != _DYNAMIC_SYMBOLS:
            continue
        text = sections[section[6]][4]
        for offset in range(section[4], section[4] + section[5], _SYMBOL_BYTES):
            name, _, _, index, _, _ = struct.unpack_from("<IBBHQQ", data, offset)
            if index == 0 and name:
                yield data[text + name : data.index(b"\0", text + name)].decode()


if __name__ == "__main__":
    build_stand_ins(installed(), Path(sys.argv[1]))
