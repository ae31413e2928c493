"""Let the plug-in offer a device that this machine does not have, on Linux.

Why and how: the documented way to compile without a GPU (`allow_virtual_devices` and `nv_target_sm`) is dead
on Linux in version 0.5.0 of the plug-in. It offers the device that these entries describe only where its
function IsWin32kLockdownActive says so, whose result on Linux is a static variable that is always 0. This
sets that variable, and the guard that says it was initialised, in the memory of this process alone; no file
changes. The plug-in is open source (Apache-2.0); NVIDIA's own libraries beside it are not touched. It is done
for these tests and nowhere in the product, is tied to the pinned version, and fails by name with another one.
"""

import ctypes
import struct
from pathlib import Path

_VARIABLES = (
    "_ZZN10trt_rtx_ep22IsWin32kLockdownActiveEvE6active",
    "_ZGVZN10trt_rtx_ep22IsWin32kLockdownActiveEvE6active",
)
_SYMBOLS = 2  # section type
_SYMBOL_BYTES = 24


def allow_virtual_devices(library: Path) -> None:
    """Load the plug-in and set the variables. Raises LookupError for another version of it."""
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    lines = Path("/proc/self/maps").read_text().splitlines()
    base = min(int(line.split("-")[0], 16) for line in lines if line.endswith(str(library)))
    found = _addresses(library)
    if missing := set(_VARIABLES) - found.keys():
        raise LookupError(f"this version of the plug-in has other names: {', '.join(sorted(missing))}")
    for name in _VARIABLES:
        ctypes.c_ubyte.from_address(base + found[name]).value = 1


def _addresses(library: Path) -> dict[str, int]:
    """Of the variables, from the full symbol table of the file."""
    data = library.read_bytes()
    (at,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(count)]
    found = {}
    for section in (section for section in sections if section[1] == _SYMBOLS):
        strings = sections[section[6]]
        text = data[strings[4] : strings[4] + strings[5]]
        wanted = {text.find(f"\0{name}\0".encode()) + 1: name for name in _VARIABLES}
        for offset in range(section[4], section[4] + section[5], _SYMBOL_BYTES):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, offset)
            if name in wanted:
                found[wanted[name]] = value
    return found
