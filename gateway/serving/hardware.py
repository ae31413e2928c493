"""What the machine has, for GET /api/v1/hardware/info."""

import sys
from typing import Any

from gateway.serving.interface import Serving

_SPOUT_HINT = "Run the gateway natively on Windows to share textures through Spout."
_GIB = 1 << 30


async def hardware_info(serving: Serving) -> dict[str, Any]:
    """Total memory of GPU 0 in GiB (None without a GPU), and which texture sharing exists (api.md 3.2)."""
    memory = await serving.gpu_memory_bytes()
    spout = sys.platform == "win32"
    return {
        "vram_gb": None if memory is None else memory[1] / _GIB,
        "spout_available": spout,
        "spout": _feature(spout, "Spout is only available on Windows", _SPOUT_HINT),
        "ndi": _feature(False, "NDI is not supported by this server", None),
        "syphon": _feature(False, "Syphon is only available on macOS and not supported by this server", None),
    }


def _feature(available: bool, reason: str, hint: str | None) -> dict[str, Any]:
    if available:
        return {"available": True, "reason": None, "install_hint": None}
    return {"available": False, "reason": reason, "install_hint": hint}
