"""The best token is the one that torch's own search finds, ties included."""

import pytest
import torch

from graft_runtime.sampling.greedy import WIDTH, best_tokens


@pytest.mark.parametrize("vocab", [1, WIDTH, 2 * WIDTH, 3 * WIDTH + 1, 32_000, 32_064])
@pytest.mark.parametrize("levels", [1, 3, 10_000])
def test_the_first_of_the_largest_numbers_is_found(vocab: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(vocab + levels)
    scores = torch.randint(-levels, levels, (9, vocab), generator=generator).float()
    scores[0] = float("-inf")
    scores[1, :-1] = float("-inf")
    scores[2, -1] = 1e6
    scores[3, 0] = 1e6
    assert torch.equal(best_tokens(scores), scores.argmax(dim=-1))


def test_rows_of_a_larger_tensor_are_searched_alone() -> None:
    scores = torch.randn(6, 4 * WIDTH + 5)
    scores[0] += 100.0
    assert torch.equal(best_tokens(scores[1::2]), scores[1::2].argmax(dim=-1))
    assert best_tokens(scores[:0]).tolist() == []
