"""Which files of which Hugging Face repositories a pipeline needs (api.md 5.2, wan.md 7.1)."""

from dataclasses import dataclass
from typing import Final

UPSTREAM: Final = "upstream"  # in a list of owners: whoever made the repository
MIRROR: Final = "daydreamlive"  # has repositories of the same names


@dataclass(frozen=True, slots=True)
class Artifact:
    """Files of one repository, stored below a directory of the repository's name.

    files: paths inside the repository; one without a suffix is a directory with all that is in it.
    """

    owner: str
    repository: str
    files: tuple[str, ...]

    def repository_id(self, owner: str = UPSTREAM) -> str:
        return f"{self.owner if owner == UPSTREAM else owner}/{self.repository}"


def is_directory(name: str) -> bool:
    """Whether an entry of `Artifact.files` means a directory."""
    return "." not in name.rpartition("/")[2]


_TEXT_ENCODER: Final = "umt5-xxl-enc-fp8_e4m3fn.safetensors"
_VACE: Final = "Wan2_1-VACE_module_1_3B_bf16.safetensors"

_WAN_1_3B: Final = Artifact("Wan-AI", "Wan2.1-T2V-1.3B", ("config.json", "Wan2.1_VAE.pth", "google"))
# VACE is on by default, so its weights belong to the default download.
_UMT5_AND_VACE: Final = Artifact("Kijai", "WanVideo_comfy", (_TEXT_ENCODER, _VACE))
_UMT5: Final = Artifact("Kijai", "WanVideo_comfy", (_TEXT_ENCODER,))

# Of preprocessors of control video, which are fetched when somebody asks for them (Apache-2.0).
PREPROCESSORS: Final[dict[str, tuple[Artifact, ...]]] = {
    "video-depth-anything": (
        Artifact("depth-anything", "Video-Depth-Anything-Small", ("video_depth_anything_vits.pth",)),
    ),
}
ARTIFACTS: Final[dict[str, tuple[Artifact, ...]]] = {
    "streamdiffusionv2": (
        _WAN_1_3B,
        _UMT5_AND_VACE,
        Artifact("jerryfeng", "StreamDiffusionV2", ("wan_causal_dmd_v2v/model.pt",)),
    ),
    "longlive": (
        _WAN_1_3B,
        _UMT5_AND_VACE,
        Artifact("Efficient-Large-Model", "LongLive-1.3B", ("models/longlive_base.pt", "models/lora.pt")),
    ),
    "krea-realtime-video": (
        _WAN_1_3B,
        _UMT5,
        Artifact("Wan-AI", "Wan2.1-T2V-14B", ("config.json",)),
        Artifact("krea", "krea-realtime-video", ("krea-realtime-video-14b.safetensors",)),
    ),
    "reward-forcing": (
        _WAN_1_3B,
        _UMT5_AND_VACE,
        Artifact("JaydenLu666", "Reward-Forcing-T2V-1.3B", ("rewardforcing.pt",)),
    ),
    "memflow": (
        _WAN_1_3B,
        _UMT5_AND_VACE,
        Artifact("KlingTeam", "MemFlow", ("base.pt", "lora.pt")),
    ),
    "passthrough": (),
}
