"""Our numbers against the reference's, case by case."""

import torch

from tests.golden.case import GoldenCase
from tests.golden.registry import replay


def test_reproduces_the_reference(case: GoldenCase) -> None:
    with torch.inference_mode():
        replay(case)
