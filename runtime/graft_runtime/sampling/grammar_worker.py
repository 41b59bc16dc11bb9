"""The grammar checker's process: tries constraints out. `graft_runtime.server.grammars` asks it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

import msgspec

from graft_runtime.errors import GrammarError
from graft_runtime.ipc.trial_worker import serve_trials
from graft_runtime.sampling.constraint import Constraint, grammar_text
from graft_runtime.sampling.grammar import Vocabulary

TOKEN_CPU_SECONDS: Final = 0.025
"""What its first tokens may take to find. That is done in a step, where others wait for it."""


class Verdict(msgspec.Struct, frozen=True):
    """What became of a constraint; the first one says whether the process can check any."""

    text: str = ""
    """The grammar for the engine."""
    error: str | None = None


def run_grammar_worker(folder: Path) -> None:
    """Check constraints until the input ends.

    Args:
        folder: Where the model's tokenizer lies.
    """
    try:
        vocabulary, special_texts = _read_tokenizer(folder)
    except (GrammarError, OSError, ValueError, KeyError) as error:
        problem = Verdict(error=str(error))
        serve_trials(Constraint, problem, lambda _: problem)
        return
    serve_trials(Constraint, Verdict(), lambda each: check(each, vocabulary, special_texts))


def check(
    constraint: Constraint, vocabulary: Vocabulary, special_texts: tuple[str, ...]
) -> Verdict:
    """Make a constraint's grammar, compile it and ask for its first tokens."""
    try:
        text = grammar_text(constraint, special_texts)
        state = vocabulary.compile(text).start()
    except GrammarError as error:
        return Verdict(error=str(error))
    began = time.thread_time()
    allowed = vocabulary.fill([state])
    if time.thread_time() - began > TOKEN_CPU_SECONDS:
        return Verdict(error="it has too many alternatives: finding a token takes too long")
    if not allowed.any():
        return Verdict(error=state.error or "no output can have this form")
    return Verdict(text)


def _read_tokenizer(folder: Path) -> tuple[Vocabulary, tuple[str, ...]]:
    serialized = (folder / "tokenizer.json").read_text(encoding="utf-8")
    added = json.loads(serialized).get("added_tokens") or ()
    return Vocabulary(serialized), tuple(each["content"] for each in added if each["special"])
