"""Requests whose grammar is being compiled, beside the steps and never in them.

The engine calls it between steps. A grammar has been tried out within limits before it comes here,
so compiling it again is cheap and known to end; the library gives up the interpreter's lock for it.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple

from graft_runtime.engine.request import Request
from graft_runtime.errors import GrammarError
from graft_runtime.sampling.grammar import Grammar, Vocabulary

MAX_CACHED: Final = 64
"""Compiled grammars that are kept for the next request with the same text."""
MAX_CACHED_CHARS: Final = 512 * 1024
"""Length of their texts together. A compiled grammar takes some hundred times its text's bytes."""


class Compiled(NamedTuple):
    """A request that need not wait any longer."""

    request: Request
    error: str | None
    """Why its grammar cannot be used."""


class Compilations:
    """Compiles in one thread, and keeps what was compiled last."""

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        """Start nothing yet.

        Args:
            vocabulary: The model's; None where its tokenizer cannot be read that way.
        """
        self._vocabulary = vocabulary
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._jobs: dict[str, Future[Grammar]] = {}
        self._cache: OrderedDict[str, Grammar] = OrderedDict()
        self._waiting: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Take a request whose sampling names a grammar; `take` returns it when that is ready."""
        text = _text(request)
        self._waiting[request.request_id] = request
        if text not in self._cache and text not in self._jobs:
            self._jobs[text] = self._thread.submit(self._compile, text)

    def get(self, request_id: str) -> Request | None:
        """Return a request that still waits."""
        return self._waiting.get(request_id)

    def remove(self, request: Request) -> None:
        """Forget a request that waits; its grammar is compiled all the same."""
        del self._waiting[request.request_id]

    def take(self) -> list[Compiled]:
        """Return the requests whose grammar is ready or has failed, in the order they came."""
        errors = self._collect()
        done = []
        for request in list(self._waiting.values()):
            text = _text(request)
            if text in self._jobs:
                continue
            del self._waiting[request.request_id]
            grammar = self._cache.get(text)
            if grammar is None:
                done.append(Compiled(request, errors.get(text, "it was not compiled")))
                continue
            self._cache.move_to_end(text)
            request.grammar = grammar.start()
            done.append(Compiled(request, None))
        self._evict()
        return done

    def _compile(self, text: str) -> Grammar:
        if self._vocabulary is None:
            raise GrammarError("the model's tokenizer does not support structured output")
        return self._vocabulary.compile(text)

    def _collect(self) -> dict[str, str]:
        """Move finished compilations to the cache; return the errors of those that failed."""
        errors: dict[str, str] = {}
        for text, job in [(text, job) for text, job in self._jobs.items() if job.done()]:
            del self._jobs[text]
            error = job.exception()
            if error is None:
                self._cache[text] = job.result()
            else:
                errors[text] = str(error)
        return errors

    def _evict(self) -> None:
        """Drop what was used least recently; a request keeps its own copy."""
        while len(self._cache) > MAX_CACHED or sum(map(len, self._cache)) > MAX_CACHED_CHARS:
            self._cache.popitem(last=False)


def _text(request: Request) -> str:
    return request.sampling.grammar or ""
