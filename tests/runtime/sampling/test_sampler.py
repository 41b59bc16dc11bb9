"""Tokens follow the processed distribution, and a row's token never depends on its batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graft_runtime.sampling.philox import uniforms
from graft_runtime.sampling.processors import keep_top_k, keep_top_p
from graft_runtime.sampling.sampler import NOT_FINITE, sample
from tests.support.sampling import VOCAB, batch, random_logits


def reference_probs(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Process one row the plain way: sort, count, add up, normalise."""
    scores = logits.double() / temperature
    order = sorted(range(len(scores)), key=lambda token: -float(scores[token]))
    if top_k:
        order = order[:top_k]
    probs = torch.zeros_like(scores)
    probs[order] = scores[order].softmax(dim=0)
    kept: list[int] = []
    reached = 0.0
    for token in order:
        if kept and reached >= top_p:
            break
        kept.append(token)
        reached += float(probs[token])
    narrowed = torch.zeros_like(probs)
    narrowed[kept] = probs[kept]
    return narrowed / narrowed.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.5, 8, 1.0), (1.0, 0, 0.8), (0.9, 12, 0.7), (2.0, 1, 0.5)],
)
def test_tokens_follow_the_processed_distribution(
    temperature: float, top_k: int, top_p: float
) -> None:
    draws = 20_000
    logits = random_logits(1)
    expected = reference_probs(logits[0], temperature, top_k, top_p)
    sampled = sample(
        logits.expand(draws, -1),
        batch(
            draws,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=np.arange(draws) % 100,
            position=np.arange(draws) // 100,
        ),
    )
    counts = torch.bincount(sampled.token_ids_S, minlength=VOCAB).double()
    assert not counts[expected == 0].any(), "a token outside the kept set was drawn"
    likely = expected * draws >= 5
    chi_square = ((counts - expected * draws) ** 2 / (expected * draws))[likely].sum()
    # Mean is the number of cells, deviation sqrt(2 n): five deviations, and the input is fixed.
    cells = int(likely.sum())
    assert float(chi_square) < cells + 5 * (2 * cells) ** 0.5


def test_the_uniform_is_inverted_exactly() -> None:
    logits = random_logits(200, seed=4)
    sampled = sample(logits, batch(200, seed=9, position=np.arange(200)))
    numbers = uniforms(np.full(200, 9, dtype=np.uint64), np.arange(200))
    for row in range(200):
        cumulative = logits[row].double().softmax(dim=0).cumsum(dim=0)
        token = int(sampled.token_ids_S[row])
        below = float(cumulative[token - 1]) if token else 0.0
        assert below - 1e-6 <= numbers[row] <= float(cumulative[token]) + 1e-6


def test_a_row_is_the_same_alone_and_in_any_company() -> None:
    rows = 24
    logits = random_logits(rows, seed=1, vocab=3000)
    rng = np.random.default_rng(0)
    columns = {
        "temperature": rng.choice([0.0, 0.5, 1.0, 1.7], rows),
        "top_k": rng.choice([0, 1, 7, 2500], rows),
        "top_p": rng.choice([0.1, 0.9, 0.999, 1.0], rows),
        "seed": rng.integers(0, 2**63, rows),
        "position": rng.integers(0, 4000, rows),
    }
    together = sample(logits, batch(rows, logprobs=True, **columns))
    order = rng.permutation(rows)
    shuffled = sample(
        logits[order], batch(rows, **{name: column[order] for name, column in columns.items()})
    )
    assert torch.equal(shuffled.token_ids_S, together.token_ids_S[order])
    assert together.logprobs_S is not None
    for row in range(rows):
        alone = sample(
            logits[row : row + 1],
            batch(1, logprobs=True, **{name: column[row] for name, column in columns.items()}),
        )
        assert alone.token_ids_S[0] == together.token_ids_S[row]
        assert alone.logprobs_S is not None
        assert alone.logprobs_S[0] == together.logprobs_S[row]


def test_temperature_zero_takes_the_best_token() -> None:
    logits = random_logits(16, seed=2)
    sampled = sample(logits, batch(16, temperature=0.0, top_k=3, top_p=0.1))
    assert torch.equal(sampled.token_ids_S, logits.argmax(dim=-1))
    assert sampled.logprobs_S is None


def test_a_tiny_temperature_is_almost_greedy() -> None:
    logits = random_logits(16, seed=2) * 1000
    sampled = sample(logits, batch(16, temperature=1e-30, seed=np.arange(16)))
    assert torch.equal(sampled.token_ids_S, logits.argmax(dim=-1))


def test_logprobs_are_of_the_unprocessed_logits() -> None:
    logits = random_logits(8, seed=3)
    sampled = sample(logits, batch(8, temperature=0.3, top_k=2, seed=np.arange(8), logprobs=True))
    expected = logits.log_softmax(dim=-1).gather(-1, sampled.token_ids_S[:, None])[:, 0]
    assert sampled.logprobs_S is not None
    torch.testing.assert_close(sampled.logprobs_S, expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_row_fails_alone(temperature: float, broken: float) -> None:
    logits = random_logits(6, seed=5)
    columns = {
        "temperature": temperature,
        "top_k": 9,
        "top_p": 0.9,
        "seed": np.arange(6),
        "logprobs": True,
    }
    whole = sample(logits, batch(6, **columns))
    damaged = logits.clone()
    damaged[2, 7] = broken
    damaged[4] = broken
    sampled = sample(damaged, batch(6, **columns))
    good = [0, 1, 3, 5]
    assert torch.equal(sampled.token_ids_S[good], whole.token_ids_S[good])
    assert sampled.token_ids_S[[2, 4]].tolist() == [NOT_FINITE, NOT_FINITE]
    assert sampled.logprobs_S is not None
    assert sampled.logprobs_S[[2, 4]].isnan().all()


def test_the_callers_logits_are_left_alone() -> None:
    logits = random_logits(4)
    before = logits.clone()
    sample(logits, batch(4, temperature=0.5, top_k=3, top_p=0.5, logprobs=True))
    assert torch.equal(logits, before)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    vocab=st.sampled_from([5, 50, 1500]),
    ks=st.lists(st.integers(0, 1600), min_size=1, max_size=5),
)
def test_top_k_keeps_exactly_the_best(seed: int, vocab: int, ks: list[int]) -> None:
    scores = random_logits(len(ks), seed, vocab)
    kept = keep_top_k(scores, torch.tensor(ks, dtype=torch.int32))
    for row, k in enumerate(ks):
        best = scores[row].topk(min(k or vocab, vocab)).indices
        expected = torch.full((vocab,), float("-inf"))
        expected[best] = scores[row][best]
        assert torch.equal(kept[row], expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    vocab=st.sampled_from([5, 50, 1500]),
    ps=st.lists(st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.99, 1.0]), min_size=1, max_size=5),
    flat=st.booleans(),
)
def test_top_p_keeps_the_fewest_that_reach_p(
    seed: int, vocab: int, ps: list[float], flat: bool
) -> None:
    scores = random_logits(len(ps), seed, vocab) * (0.01 if flat else 1.0)
    kept = keep_top_p(scores, torch.tensor(ps))
    for row, p in enumerate(ps):
        is_kept = kept[row] > float("-inf")
        assert torch.equal(kept[row][is_kept], scores[row][is_kept])
        probs = scores[row].double().softmax(dim=0)
        total = float(probs[is_kept].sum())
        if p == 1.0:
            assert bool(is_kept.all())
            continue
        assert total >= p - 1e-5
        assert total - float(probs[is_kept].min()) < p + 1e-5 or int(is_kept.sum()) == 1
        if not bool(is_kept.all()):
            assert float(probs[is_kept].min()) >= float(probs[~is_kept].max())
