"""The grammar checker: what a constraint does to its process, it does to nobody else."""

import asyncio
import json
import resource
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from graft_runtime.errors import InvalidRequestError, NotReadyError, OverloadedError
from graft_runtime.ipc.trial import TrialFailedError
from graft_runtime.sampling.constraint import Constraint, ConstraintKind
from graft_runtime.server import grammars
from graft_runtime.server.grammars import GrammarChecker

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def checker(model_folder: Path) -> AsyncIterator[GrammarChecker]:
    checker = GrammarChecker(lambda: model_folder)
    yield checker
    await checker.close()


async def check(checker: GrammarChecker, kind: ConstraintKind, value: str) -> str:
    return await checker.check(Constraint(kind=kind, value=value), "field")


def wide_object(num_properties: int) -> str:
    return json.dumps({"properties": {f"property{n}": {} for n in range(num_properties)}})


def crossed_object(num_factors: int, num_choices: int) -> str:
    """Return a schema whose branches multiply."""
    factors: list[dict[str, object]] = [
        {"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(num_choices)]}
        for i in range(num_factors)
    ]
    return json.dumps({"allOf": factors})


EXPLODING: list[tuple[ConstraintKind, str]] = [
    ("json_schema", wide_object(9000)),
    ("json_schema", crossed_object(12, 9)),
    ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    ("regex", "(" * 60_000 + "a" + ")" * 60_000),
    ("grammar", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000),
]
RUINOUS = ("(a+)+$", "(x+x+)+y", "(.*a){12}", "(a|a)*b", "(((a{1,900}){1,900}){1,900}b){900}")
"""Expressions that take a backtracking matcher for ever."""


async def test_an_exploding_constraint_is_refused_and_the_next_one_is_served(
    checker: GrammarChecker,
) -> None:
    for number, (kind, value) in enumerate(EXPLODING):
        with pytest.raises(InvalidRequestError) as caught:
            await check(checker, kind, value)
        assert caught.value.param == "field"
        assert len(caught.value.message) < 400
        assert await check(checker, "regex", f"a{number}") == f"start: /a{number}/"


async def test_expressions_that_ruin_backtracking_matchers_are_harmless(
    checker: GrammarChecker,
) -> None:
    for value in RUINOUS:
        assert await check(checker, "regex", value)


async def test_a_slow_constraint_does_not_hold_up_a_quick_one(checker: GrammarChecker) -> None:
    await check(checker, "regex", "warm")
    slow = asyncio.create_task(check(checker, "json_schema", wide_object(9000)))
    assert await check(checker, "regex", "quick")
    with pytest.raises(InvalidRequestError):
        await slow


async def test_a_constraint_that_needs_memory_is_refused(
    checker: GrammarChecker, model_folder: Path
) -> None:
    """Give the process too little, which is the same as asking for too much."""
    worker = await checker._processes._start(("grammar", str(model_folder)))
    pid = worker._process.pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2**20
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))
    with pytest.raises(TrialFailedError):
        await worker.ask(Constraint(kind="json_schema", value=wide_object(3000)))
    assert not worker.is_idle
    await worker.end()


async def test_a_constraint_that_computes_for_too_long_is_refused(
    checker: GrammarChecker, model_folder: Path
) -> None:
    """Stop its process by the very signal that the kernel's limit sends."""
    worker = await checker._processes._start(("grammar", str(model_folder)))
    worker._process.send_signal(signal.SIGXCPU)
    with pytest.raises(TrialFailedError, match="seconds"):
        await worker.ask(Constraint(kind="regex", value="a"))
    await worker.end()


async def test_equal_constraints_are_checked_once(checker: GrammarChecker) -> None:
    texts = await asyncio.gather(*(check(checker, "regex", "ab*") for _ in range(20)))
    assert set(texts) == {"start: /ab*/"}
    assert len(checker._cache) == 1
    assert len(checker._processes._idle) == 1


async def test_refusals_are_remembered_too(checker: GrammarChecker) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="regex"):
            await check(checker, "regex", "(a")
    assert len(checker._cache) == 1


async def test_what_is_remembered_is_bounded(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CACHED", 3)
    for number in range(6):
        await check(checker, "regex", f"a{number}")
    assert [each.value for each in checker._cache] == ["a3", "a4", "a5"]
    monkeypatch.setattr(grammars, "MAX_CACHED_CHARS", 100)
    await check(checker, "regex", "b" * 45)  # as a text it has 54
    assert [each.value for each in checker._cache] == ["b" * 45]


async def test_too_many_waiting_constraints_are_429(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_WAITING", 1)
    first = asyncio.create_task(check(checker, "regex", "a"))
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await check(checker, "regex", "b")
    assert await first


async def test_a_client_that_goes_away_leaves_the_check_to_the_others(
    checker: GrammarChecker,
) -> None:
    first = asyncio.create_task(check(checker, "regex", "a"))
    second = asyncio.create_task(check(checker, "regex", "a"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "start: /a/"


async def test_before_the_model_is_there_nothing_can_be_checked() -> None:
    with pytest.raises(NotReadyError):
        await check(GrammarChecker(lambda: None), "regex", "a")


async def test_a_tokenizer_that_cannot_be_read_refuses_every_constraint(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {}}}')
    checker = GrammarChecker(lambda: tmp_path)
    for value in ("a", "b"):
        with pytest.raises(InvalidRequestError, match="tokenizer"):
            await check(checker, "regex", value)
    await checker.close()
