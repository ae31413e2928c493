"""How the autoencoders cut pixel frames, as the specification says it (wan.md 5.5, 5.6)."""

from streaming.network.video import FrameGroups
from streaming.specs import TEMPORAL_FACTOR

WAN_GROUPS = FrameGroups(first=1, later=TEMPORAL_FACTOR)  # VAE types wan, lightvae
TINY_GROUPS = FrameGroups(first=TEMPORAL_FACTOR, later=TEMPORAL_FACTOR, repeat_last=True)  # tae, lighttae
