"""What the machine has, for GET /api/v1/hardware/info."""

from typing import Any, Final

from gateway.local_video.service import LocalVideo
from gateway.serving.interface import Serving

_GIB: Final = 1 << 30


async def hardware_info(serving: Serving, local_video: LocalVideo) -> dict[str, Any]:
    """Total memory of GPU 0 in GiB (None without a GPU), and which texture sharing exists (api.md 3.2)."""
    memory = await serving.gpu_memory_bytes()
    spout, ndi, syphon = (local_video.availability(kind) for kind in ("spout", "ndi", "syphon"))
    return {
        "vram_gb": None if memory is None else memory[1] / _GIB,
        "spout_available": spout.available,
        "spout": spout.as_dict(),
        "ndi": ndi.as_dict(),
        "syphon": syphon.as_dict(),
    }
