"""Watermarks: transformers' own lists and scores, and z-scores by its detector."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    WatermarkDetector,
    WatermarkingConfig,
    WatermarkLogitsProcessor,
)

from graft_runtime.ipc.messages import Watermark
from graft_runtime.sampling.batch import WatermarkedRow
from graft_runtime.sampling.sampler import _choose, sample
from graft_runtime.sampling.watermark import apply_watermarks
from tests.support.bigram import bigram_engine
from tests.support.sampling import batch, random_logits

VOCAB = 400
MARKS = [
    Watermark(),
    Watermark(greenlist_ratio=0.5, bias=3.5, hashing_key=77),
    Watermark(context_width=3, hashing_key=2**62 + 11),
    Watermark(seeding_scheme="selfhash", bias=2.5),
    Watermark(seeding_scheme="selfhash", context_width=4, greenlist_ratio=0.4),
]


def settings_of(mark: Watermark) -> dict[str, Any]:
    return {name: getattr(mark, name) for name in mark.__struct_fields__}


def marked(mark: Watermark, context: list[int], row: int = 0) -> WatermarkedRow:
    return WatermarkedRow(row, mark, tuple(context[-mark.context_width :]))


@pytest.mark.parametrize("mark", MARKS)
def test_scores_are_transformers_bit_for_bit(mark: Watermark) -> None:
    processor = WatermarkLogitsProcessor(VOCAB, "cpu", **settings_of(mark))
    chance = np.random.default_rng(1)
    for trial in range(5):
        context = [int(token) for token in chance.integers(0, VOCAB, 9)]
        scores = random_logits(1, seed=trial, vocab=VOCAB)
        expected = processor(torch.tensor([context]), scores)
        apply_watermarks(scores, (marked(mark, context),), np.arange(1))
        assert torch.equal(scores, expected)


@pytest.mark.parametrize("mark", MARKS)
def test_the_mark_comes_last_as_in_transformers(mark: Watermark) -> None:
    context = [5, 9, 200, 31, 7]
    logits = random_logits(1, vocab=VOCAB)
    processors = LogitsProcessorList(
        [
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(60),
            WatermarkLogitsProcessor(VOCAB, "cpu", **settings_of(mark)),
        ]
    )
    expected = processors(torch.tensor([context]), logits).softmax(dim=-1)
    scores = logits.clone()
    rows = batch(1, temperature=0.7, top_k=60)
    _choose(scores, replace(rows, watermarked=(marked(mark, context),)), np.arange(1))
    torch.testing.assert_close(scores.softmax(dim=-1), expected)


def test_a_context_that_is_too_short_is_not_marked() -> None:
    mark = Watermark(context_width=4)
    scores = random_logits(1, vocab=VOCAB)
    before = scores.clone()
    apply_watermarks(scores, (marked(mark, [1, 2, 3]),), np.arange(1))
    assert torch.equal(scores, before)


def test_rows_with_and_without_marks_are_sampled_as_if_alone() -> None:
    rows = 6
    logits = random_logits(rows, vocab=VOCAB)
    temperature = np.array([0, 1, 0, 1, 0, 1])
    plain = batch(rows, temperature=temperature, seed=np.arange(rows))
    contexts = {1: [3, 4], 2: [9, 8], 5: [7, 7]}
    mark = Watermark(bias=6.0)
    mixed = sample(
        logits, replace(plain, watermarked=tuple(marked(mark, c, r) for r, c in contexts.items()))
    ).token_ids_S
    free = sample(logits, plain).token_ids_S
    for row in range(rows):
        alone = batch(1, temperature=temperature[row], seed=row)
        if row not in contexts:
            assert mixed[row] == free[row]
            continue
        own = replace(alone, watermarked=(marked(mark, contexts[row]),))
        assert sample(logits[row : row + 1], own).token_ids_S[0] == mixed[row]
    assert not torch.equal(mixed, free)


def z_score(mark: Watermark, tokens: list[int]) -> float:
    config = SimpleNamespace(vocab_size=VOCAB, bos_token_id=VOCAB, is_encoder_decoder=False)
    detector = WatermarkDetector(config, "cpu", WatermarkingConfig(**settings_of(mark)))
    found = detector(torch.tensor([tokens]), return_dict=True)
    return float(found.z_score[0])


@pytest.mark.parametrize("mark", MARKS)
def test_transformers_detector_finds_the_mark_and_nothing_without_it(mark: Watermark) -> None:
    """The whole engine, in chunks and in company."""
    run = bigram_engine(VOCAB, frozenset(), num_blocks=400)
    for number in range(3):
        asked: dict[str, Any] = {"max_tokens": 120, "seed": number}
        prompt = [number + 3] * (number * 9 + 2)
        run.submit(f"marked{number}", prompt, watermark=mark, **asked)
        run.submit(f"plain{number}", prompt, **asked)
    run.finish()
    for number in range(3):
        assert z_score(mark, run.tokens(f"marked{number}")) > 4
        assert abs(z_score(mark, run.tokens(f"plain{number}"))) < 4


def test_another_key_does_not_find_the_mark() -> None:
    run = bigram_engine(VOCAB, frozenset())
    run.submit("r", [5], max_tokens=200, watermark=Watermark(hashing_key=1234567))
    run.finish()
    assert z_score(Watermark(hashing_key=1234567), run.tokens("r")) > 6
    assert abs(z_score(Watermark(hashing_key=7654321), run.tokens("r"))) < 4
