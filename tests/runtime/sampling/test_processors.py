"""Each way to narrow a distribution, against transformers' own."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from graft_runtime.sampling.processors import keep_min_p, keep_top_k, keep_top_p, keep_typical
from graft_runtime.sampling.sampler import _narrow
from tests.support.sampling import batch, random_logits

# Shape legend: n rows, V vocabulary.

IDS = torch.zeros(1, 1, dtype=torch.int64)
ROWS = 40


def kept(scores_nV: Tensor) -> Tensor:
    return scores_nV > float("-inf")


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
def test_the_temperature_is_transformers(temperature: float) -> None:
    scores = random_logits(ROWS)
    rows = torch.arange(ROWS).numpy()
    cooled = _narrow(scores, batch(ROWS, temperature=temperature), rows)
    expected = TemperatureLogitsWarper(temperature)(IDS, scores)
    torch.testing.assert_close(cooled.log_softmax(dim=-1), expected.log_softmax(dim=-1))


@pytest.mark.parametrize("vocab", [5, 50, 3000])
@pytest.mark.parametrize("k", [1, 4, 40, 2999])
def test_top_k_keeps_what_transformers_keeps(k: int, vocab: int) -> None:
    scores = random_logits(ROWS, vocab=vocab)
    scores[:, 1] = scores[:, 2]  # a tie
    expected = TopKLogitsWarper(k)(IDS, scores)
    assert torch.equal(keep_top_k(scores, torch.full((ROWS,), k)), expected)


@pytest.mark.parametrize("vocab", [5, 50, 3000])
@pytest.mark.parametrize("p", [1e-4, 0.05, 0.3, 0.9, 0.99])
def test_top_p_keeps_what_transformers_keeps(p: float, vocab: int) -> None:
    scores = random_logits(ROWS, vocab=vocab)
    expected = TopPLogitsWarper(p)(IDS, scores.double())
    narrowed = keep_top_p(scores, torch.full((ROWS,), p, dtype=torch.float64))
    # Sums are rounded differently: the last token kept may be the next one.
    assert int((kept(narrowed) != kept(expected)).sum(dim=-1).max()) <= (vocab > 1000)


@pytest.mark.parametrize("vocab", [5, 50, 3000])
@pytest.mark.parametrize("p", [1e-4, 0.05, 0.3, 0.9, 1.0])
def test_min_p_keeps_what_transformers_keeps(p: float, vocab: int) -> None:
    scores = random_logits(ROWS, vocab=vocab)
    expected = MinPLogitsWarper(p)(IDS, scores)
    assert torch.equal(keep_min_p(scores, torch.full((ROWS,), p)), expected)


@pytest.mark.parametrize("vocab", [5, 50, 3000])
@pytest.mark.parametrize("mass", [1e-4, 0.2, 0.5, 0.9, 0.99])
def test_typical_keeps_what_transformers_keeps(mass: float, vocab: int) -> None:
    scores = random_logits(ROWS, vocab=vocab)
    scores[:, 3] = float("-inf")
    expected = TypicalLogitsWarper(mass)(IDS, scores.double())
    narrowed = keep_typical(scores, torch.full((ROWS,), mass, dtype=torch.float64))
    # Sums are rounded differently: the last token kept may be the next one.
    assert int((kept(narrowed) != kept(expected)).sum(dim=-1).max()) <= (vocab > 1000)


def test_what_is_off_in_one_row_stays_off_beside_others() -> None:
    scores = random_logits(3)
    off = torch.tensor([0.0, 0.4, 0.0])
    assert kept(keep_min_p(scores, off)).all(dim=-1).tolist() == [True, False, True]
    off = torch.tensor([1.0, 0.4, 1.0])
    assert kept(keep_typical(scores, off)).all(dim=-1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("parameters", "warpers"),
    [
        ({"temperature": 0.7, "min_p": 0.1}, [TemperatureLogitsWarper(0.7), MinPLogitsWarper(0.1)]),
        (
            {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "min_p": 0.2, "typical_p": 0.6},
            [
                TemperatureLogitsWarper(1.5),
                TopKLogitsWarper(9),
                TopPLogitsWarper(0.8),
                MinPLogitsWarper(0.2),
                TypicalLogitsWarper(0.6),
            ],
        ),
    ],
)
def test_all_together_come_in_transformers_order(
    parameters: dict[str, Any], warpers: list[Any]
) -> None:
    scores = random_logits(ROWS, seed=6)
    rows = torch.arange(ROWS).numpy()
    narrowed = _narrow(scores, batch(ROWS, **parameters), rows)
    expected = LogitsProcessorList(warpers)(IDS, scores)
    torch.testing.assert_close(narrowed.softmax(dim=-1), expected.softmax(dim=-1))
    assert torch.equal(kept(narrowed), kept(expected))
