"""Log probabilities: raw or processed, the likeliest tokens, ranks."""

import numpy as np
import pytest
import torch

from graft_runtime.sampling.logprobs import rank, score
from graft_runtime.sampling.sampler import sample
from tests.support.sampling import VOCAB, batch, random_logits

ROWS = 12


def test_scores_are_those_of_log_softmax() -> None:
    logits = random_logits(ROWS)
    tokens = torch.arange(ROWS)
    scores = score(logits, tokens, 5)
    expected = logits.double().log_softmax(dim=-1).float()
    torch.testing.assert_close(scores.logprobs_m, expected[torch.arange(ROWS), tokens])
    best = expected.topk(5, dim=-1)
    assert torch.equal(scores.top_ids_mK, best.indices)
    torch.testing.assert_close(scores.top_logprobs_mK, best.values)


def test_a_greedy_choice_equals_the_likeliest_bit_for_bit() -> None:
    logits = random_logits(500, vocab=997)
    scores = score(logits, logits.argmax(dim=-1), 1)
    assert torch.equal(scores.logprobs_m, scores.top_logprobs_mK[:, 0])


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    assert score(random_logits(1, vocab=3), torch.tensor([0]), 20).top_ids_mK.shape == (1, 3)


def test_the_rank_counts_better_tokens() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 1.0]]).expand(4, -1)
    assert rank(logits, torch.arange(4)).tolist() == [1, 3, 2, 3]


def test_processed_logprobs_are_of_what_was_drawn_from() -> None:
    logits = random_logits(ROWS)
    sampled = sample(
        logits,
        batch(
            ROWS,
            temperature=0.5,
            top_k=3,
            seed=np.arange(ROWS),
            logprobs=True,
            num_top=5,
            processed=np.arange(ROWS) % 2 == 0,
        ),
    )
    assert sampled.logprobs_S is not None
    assert sampled.top_logprobs_SK is not None
    raw = logits.log_softmax(dim=-1)
    for row, token in enumerate(sampled.token_ids_S.tolist()):
        best = logits[row].topk(3).values
        narrowed = (logits[row, token] / 0.5) - (best / 0.5).logsumexp(dim=-1)
        expected = raw[row, token] if row % 2 else narrowed
        torch.testing.assert_close(sampled.logprobs_S[row], expected)
        assert int(sampled.top_logprobs_SK[row].isneginf().sum()) == (0 if row % 2 else 2)


@pytest.mark.parametrize("processed", [False, True])
def test_greedy_rows_without_rules_have_the_models_own(processed: bool) -> None:
    logits = random_logits(ROWS)
    sampled = sample(logits, batch(ROWS, temperature=0.0, logprobs=True, processed=processed))
    assert sampled.logprobs_S is not None
    torch.testing.assert_close(sampled.logprobs_S, logits.log_softmax(dim=-1).amax(dim=-1))
    assert sampled.top_ids_SK is None


def test_answers_to_one_request_draw_different_numbers() -> None:
    logits = torch.zeros(8, VOCAB)
    indices = np.arange(8)
    tokens = sample(logits, batch(8, seed=3, sample_index=indices)).token_ids_S
    assert len(set(tokens.tolist())) > 4
    alone = sample(logits[:1], batch(1, seed=3, sample_index=5)).token_ids_S
    assert alone[0] == tokens[5]
