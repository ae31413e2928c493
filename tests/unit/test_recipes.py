"""The table of recipes per card: made by the memory plan, as the docs have it."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.__main__ import main
from gateway.serving.recipes import CARDS_GB, fit_on_card
from streaming.checkpoints.files import TRANSFORMER_FILES
from streaming.memory.offers import SIZES
from streaming.memory.plan import DoesNotFitError
from streaming.specs import VaeType

DOCS = Path(__file__).parents[2] / "docs" / "gpu.md"
GB = 1_000_000_000


def test_the_docs_have_what_the_command_prints() -> None:
    documented = (
        DOCS.read_text(encoding="utf-8").partition("<!-- recipes -->\n")[2].partition("\n<!-- /recipes")[0]
    )

    printed = CliRunner().invoke(main, ["recipes"])

    assert printed.output.rstrip() == documented
    assert documented.count("\n") == 1 + len(CARDS_GB)


@pytest.mark.parametrize("pipeline", TRANSFORMER_FILES)
@pytest.mark.parametrize("vae_type", ["wan", "tae"])
def test_a_larger_card_takes_what_a_smaller_one_takes(pipeline: str, vae_type: VaeType) -> None:
    for size in SIZES:
        sessions = []
        for card_gb in CARDS_GB:
            try:
                found = fit_on_card(pipeline, vae_type, size, card_gb)
            except DoesNotFitError:
                sessions.append(0)
                continue
            assert found.sessions
            assert found.plan.total(found.sessions) <= card_gb * GB
            sessions.append(1)
        assert sessions == sorted(sessions)
