"""The runner: what a step leaves on the device, and for how long."""

from __future__ import annotations

import weakref

import pytest
from torch import Tensor

from graft_runtime.layers.batch import ForwardBatch
from tests.support.bigram import BigramModel, bigram_engine


def test_a_step_makes_its_logits_when_those_of_the_step_before_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    forward = BigramModel.forward

    def watched(model: BigramModel, batch: ForwardBatch) -> Tensor:
        alive.append(sum(logits() is not None for logits in made))
        logits = forward(model, batch)
        made.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(BigramModel, "forward", watched)
    bench = bigram_engine(32, frozenset())
    bench.submit("one", [1, 2], max_tokens=8)
    bench.submit("two", [3], max_tokens=8)
    bench.finish()
    assert len(made) >= 8
    assert set(alive) == {0}
