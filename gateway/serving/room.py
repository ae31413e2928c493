"""What a machine has room for, said before anything is downloaded."""

from dataclasses import dataclass

from streaming.memory.offers import Offer
from streaming.memory.units import in_units


@dataclass(frozen=True, slots=True)
class Room:
    """What of a pipeline's weights fits here, whether they are here or not.

    kind         memory, or GPU memory
    free_bytes   what is free when nothing is loaded; null: nobody can tell
    offers       by autoencoder the largest of the usual sizes that fits
    absent       autoencoders whose files are not here, and are not part of a download
    """

    kind: str
    free_bytes: int | None
    offers: list[Offer]
    absent: tuple[str, ...] = ()

    def refusal(self, pipeline_id: str, insist: str) -> str | None:
        """Why weights that nothing here could hold at any of the usual sizes are not fetched; None: they are.

        insist: how to have them all the same
        """
        if self.free_bytes is None or self.offers:
            return None
        return (
            f"{pipeline_id} is not downloaded. {self.text} Choose another pipeline, or {insist} if the files "
            "are for another machine."
        )

    @property
    def text(self) -> str:
        """A sentence for people."""
        whose = "This GPU" if self.kind == "GPU memory" else "This machine"
        if self.free_bytes is None:
            return f"How much {self.kind} is free is not known."
        room = f"{whose} ({in_units(self.free_bytes)} free)"
        if not self.offers:
            return f"{room} has no room for it, whatever the size."
        by_hand = [offer.vae_type for offer in self.offers if offer.vae_type in self.absent]
        note = f" The files of {', '.join(by_hand)} are not here; no download brings them." if by_hand else ""
        return f"{room} can load: {', '.join(map(str, self.offers))} (height x width).{note}"
