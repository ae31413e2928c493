"""What one stream remembers from chunk to chunk (pipelines-common.md 2)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from streaming.cache.kv_cache import KVCache
from streaming.cache.memory_bank import MemoryBank
from streaming.conditioning.conditions import Conditions
from streaming.conditioning.prompts import PromptState
from streaming.network.autoencoder import Caches
from streaming.network.model import StreamModel
from streaming.noise import Array
from streaming.vace.context import EncoderCaches


@dataclass(eq=False)
class Session:
    """One stream. All values are replaced, never changed in place, so a copy is a snapshot.

    The exception is the memory of `kv`, whose rules `KVCache` states. The loop is the only writer: it works
    on a copy and adopts it when the chunk is done.
    """

    kv: KVCache
    clean: Tensor  # the last clean latents, [1, frames, C, h, w]; as many as a re-cache reads
    pictures: Tensor  # the last decoded frames, [1, 3, T, H, W] in [-1, 1]; as many as a context shows
    bank: MemoryBank = field(default_factory=MemoryBank)
    start: int = 0  # position of the next latent frame
    index: int = 0  # chunks since the last reset
    mode: str | None = None  # of the chunk before; None: there was none
    seed: int = 0  # base seed since the last reset
    steps: tuple[int, ...] | None = None  # denoising timesteps of the chunk before
    prompt: PromptState = field(default_factory=PromptState)
    conditions: Conditions = field(default_factory=Conditions)
    lora_scales: Mapping[str, float] = field(default_factory=dict)  # that the stream has asked for, by name
    encoder_caches: Caches | None = None  # None: the next frames are the first of a stream
    decoder_caches: Caches | None = None
    vace_caches: EncoderCaches = field(default_factory=EncoderCaches)
    vace_cross_kv: tuple[Tensor, ...] = ()  # of the prompt; empty: not computed yet
    last_input: Array | None = None  # last frame that the noise controller saw, [1, 3, 1, H, W]

    @staticmethod
    def begin(model: StreamModel) -> "Session":
        """A stream that has produced nothing yet."""
        return Session(
            kv=model.empty_cache(),
            clean=model.no_latents(),
            pictures=model.no_pictures(),
            bank=model.empty_bank(),
            vace_caches=EncoderCaches(model.shared_encoder_cache),
        )

    def reset(self, model: StreamModel, seed: int) -> None:
        """Start again at frame 0 with empty caches; prompts and their embedding stay."""
        self.bank = self.bank.forgetting()
        self.kv = self.kv.oldest(0).with_bank(self.bank.keys_and_values())
        self.clean, self.pictures = model.no_latents(), model.no_pictures()
        self.start = self.index = 0
        self.seed = seed
        self.encoder_caches = self.decoder_caches = None
        self.vace_caches = EncoderCaches(model.shared_encoder_cache)

    def adopt(self, other: "Session") -> None:
        """Become what `other` is."""
        for entry in dataclasses.fields(self):
            setattr(self, entry.name, getattr(other, entry.name))
