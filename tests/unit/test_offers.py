"""What a machine has room for, said before anything is there."""

from pathlib import Path

import pytest

from gateway.serving.checkpoints import Checkpoints
from gateway.serving.recipes import fit_on_card
from gateway.serving.room import Room
from streaming.engines.load_plan import TorchSettings
from streaming.specs import KREA_REALTIME_VIDEO, LONGLIVE, PipelineSpec

GB = 1_000_000_000


def room(tmp_path: Path, free: int | None, spec: PipelineSpec = LONGLIVE, *, gpu: bool = True) -> Room:
    return Checkpoints(tmp_path, tmp_path, TorchSettings(), has_gpu=gpu).room(spec, free, None)


@pytest.mark.parametrize("card_gb", [8, 24, 80])
def test_an_empty_directory_of_models_offers_what_the_recipes_say(tmp_path: Path, card_gb: int) -> None:
    offers = {offer.vae_type: offer for offer in room(tmp_path, card_gb * GB).offers}

    assert set(offers) == {"wan", "lightvae", "tae", "lighttae"}
    for kind in ("wan", "tae"):
        found = offers[kind]
        planned = fit_on_card("longlive", kind, (found.height, found.width), card_gb)
        assert found.sessions == planned.sessions


def test_a_card_says_what_it_can_load_in_a_sentence(tmp_path: Path) -> None:
    text = room(tmp_path, 24 * GB).text

    assert text.startswith("This GPU (24.0 GB free) can load: 320x576 with vae_type wan, ")
    assert "480x832 with vae_type tae" in text
    assert text.endswith("The files of lightvae, tae, lighttae are not here; no download brings them.")


def test_where_nothing_fits_or_nobody_can_tell_that_is_said(tmp_path: Path) -> None:
    nothing = room(tmp_path, 24 * GB, KREA_REALTIME_VIDEO)
    unknown = room(tmp_path, None)

    assert nothing.offers == []
    assert "no room for it, whatever the size" in nothing.text
    assert "not known" in unknown.text
    assert room(tmp_path, 64 * GB, gpu=False).text.startswith("This machine (64.0 GB free) can load")
