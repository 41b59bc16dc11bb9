"""Limits of thoughts: counted from mark to mark, closed token by token, the same in any company."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from graft_runtime.engine.thoughts import ThoughtWatch
from graft_runtime.ipc.messages import Sampling, Submit, ThoughtLimit, TokenOutput
from graft_runtime.sampling.grammar import Vocabulary
from tests.support.gate import GateSettings, start_engine
from tests.support.tiny_models import make_llama

TEXTS = {1: "\n", 2: "<th", 3: "ink>", 4: "</th", 5: "ink>\n", 6: "<", 7: "<think>", 8: "</think>"}
"""Of the tokens that matter; all others are one letter."""
MARK = (4, 5)
PROMPT = [20, 21, 22]


class Texts:
    """Stands in for a vocabulary."""

    def text_of(self, token_id: int) -> bytes:
        return TEXTS.get(token_id, "x").encode()


def limit(max_tokens: int, *, is_open: bool = False) -> ThoughtLimit:
    return ThoughtLimit(
        max_tokens=max_tokens,
        opening="<think>",
        closing="</think>",
        closing_ids=MARK,
        is_open=is_open,
    )


def follow(watch: ThoughtWatch, tokens: list[int]) -> list[int | None]:
    """Return what was forced before each token, and after the last."""
    forced = [watch.forced]
    for token in tokens:
        watch.add(token)
        forced.append(watch.forced)
    return forced


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "is_open", "expected"),
    [
        ([9, 9, 4, 5, 9], 2, True, [None, None, 4, 5, None, None]),
        ([4, 5, 9], 0, True, [4, 5, None, None]),
        ([1, 2, 3, 9, 4, 5, 9], 1, False, [None, None, None, None, 4, 5, None, None]),
        ([7, 4, 5, 9], 0, False, [None, 4, 5, None, None]),
        ([9, 7, 9, 9], 0, False, [None] * 5),  # a mark amid an answer is none
        ([7, 9, 8, 9, 9, 9], 2, False, [None] * 7),  # closed by the model itself
        ([7, 9, 4, 3, 9, 9], 3, False, [None] * 7),  # and in other tokens than ours
        ([7, 9, 4, 5, 9], 2, False, [None, None, None, 5, None, None]),  # amid its own mark
    ],
)
def test_a_thought_is_closed_where_its_limit_is_reached(
    tokens: list[int], max_tokens: int, is_open: bool, expected: list[int | None]
) -> None:
    watch = ThoughtWatch(limit(max_tokens, is_open=is_open), Texts().text_of)
    assert follow(watch, tokens) == expected


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"), seed=3, max_position_embeddings=128)


def run(
    model_dir: Path, folder: Path, asked: dict[str, Sampling], settings: GateSettings
) -> tuple[dict[str, list[TokenOutput]], int]:
    """Return the requests' outputs, and how often one was preempted."""
    engine = start_engine(model_dir, {}, folder, settings).engine
    engine._vocabulary = cast("Vocabulary", Texts())
    found: dict[str, list[TokenOutput]] = {name: [] for name in asked}
    for name, sampling in asked.items():
        engine.submit(Submit(name, PROMPT, sampling))
    while engine.has_work:
        for output in engine.step().outputs:
            found[output.request_id].append(output)
    engine.check_integrity()
    return found, engine.stats().preemptions


def tokens_of(outputs: list[TokenOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def thinking(max_tokens: int, **fields: object) -> Sampling:
    asked: dict[str, object] = {
        "max_tokens": 24,
        "temperature": 0.9,
        "seed": 5,
        "ignore_eos": True,
        "thought_limit": limit(max_tokens, is_open=True),
    }
    return Sampling(**(asked | fields))  # type: ignore[arg-type] # test shorthand


def test_each_request_thinks_as_long_as_it_may_alone_and_in_company(
    model_dir: Path, tmp_path: Path
) -> None:
    asked = {f"r{size}": thinking(size, sample_index=size) for size in (0, 1, 5, 30)}
    company = asked | {f"plain{index}": thinking(9, thought_limit=None) for index in range(4)}
    alone = {
        name: tokens_of(run(model_dir, tmp_path, {name: one}, GateSettings())[0][name])
        for name, one in asked.items()
    }
    # So small a pool that some must give way and are computed again.
    found, preemptions = run(model_dir, tmp_path, company, GateSettings(num_blocks=16))
    assert preemptions > 0
    for name in asked:
        assert tokens_of(found[name]) == alone[name]
    for size in (0, 1, 5):
        output = alone[f"r{size}"]
        assert tuple(output[size : size + 2]) == MARK
        assert not set(MARK) & set(output[:size])
        free = tokens_of(found["plain0"])
        assert len(set(output[size + 2 :])) > 3, free
    assert len(alone["r30"]) == 24  # as long as the output, whose end came first


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"logit_bias": {4: -100.0, 9: 100.0}},
        {"bad_words": ((4,), (5,))},
        {"allowed_token_ids": (9, 10, 11)},
        {"top_k": 1, "repetition_penalty": 90.0},
        {"stop_token_ids": (4,), "min_tokens": 24},
    ],
    ids=["greedy", "bias", "bad words", "allowed", "penalty", "stop token before its time"],
)
def test_the_mark_comes_whatever_else_is_asked(
    model_dir: Path, tmp_path: Path, fields: dict[str, object]
) -> None:
    found, _ = run(model_dir, tmp_path, {"r": thinking(3, **fields)}, GateSettings())
    output = tokens_of(found["r"])
    assert tuple(output[3:5]) == MARK
    assert len(output) == 24
    assert found["r"][-1].finish_reason == "length"


def test_a_forced_token_has_the_models_own_log_probability(model_dir: Path, tmp_path: Path) -> None:
    fields: dict[str, object] = {"logprobs": True, "logprob_token_ids": (4, 9)}
    found, _ = run(model_dir, tmp_path, {"r": thinking(3, **fields)}, GateSettings())
    output = found["r"][3]
    assert output.logprobs is not None
    assert output.top_logprobs is not None
    (pairs,) = output.top_logprobs
    assert [id for id, _ in pairs] == [4, 9]
    assert pairs[0][1] == output.logprobs[0] < -1.0


def test_a_stop_token_that_closes_a_thought_ends_the_output(
    model_dir: Path, tmp_path: Path
) -> None:
    found, _ = run(model_dir, tmp_path, {"r": thinking(3, stop_token_ids=(5,))}, GateSettings())
    assert len(tokens_of(found["r"])) == 5
    assert found["r"][-1].finish_reason == "stop"


def test_a_limit_that_cannot_be_watched_is_refused(model_dir: Path, tmp_path: Path) -> None:
    engine = start_engine(model_dir, {}, tmp_path, GateSettings()).engine
    engine.submit(Submit("r", PROMPT, thinking(3)))
    (output,) = engine.step().outputs
    assert output.is_impossible
    assert not engine.has_work
