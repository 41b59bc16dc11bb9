"""What a scripted proxy does to which call: rules of a match and a fault, played in order.

A rule hits the calls that it matches from the n-th on, as many times as it says, and the first rule
that hits a call decides. Values only; `api_proxy` plays them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal
from urllib.parse import parse_qs, urlsplit

WRITES = ("create", "apply", "merge", "status", "delete")
READS = ("get", "list", "watch")
FOREVER = 1_000_000_000


@dataclass(frozen=True)
class Call:
    """One request to the API, or, with the verb ``event``, one line of a watch."""

    verb: str
    plural: str
    namespace: str = ""
    name: str = ""
    type: str = ""
    """Of an event."""
    page: int = 0
    """Of a list; 0 is the first."""

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.verb in WRITES

    def __str__(self) -> str:
        return f"{self.verb} {self.plural}/{self.name}".rstrip("/")


class Breakage(StrEnum):
    """How a watch ends, or goes on in vain."""

    GONE = "in-stream 410"
    HTTP_GONE = "HTTP 410"
    ERROR_500 = "in-stream 500"
    ERROR_504 = "in-stream 504"
    END = "end of file"
    CUT = "cut without a last chunk"
    RESET = "reset"
    STALL = "silence"
    GARBAGE = "a line that is no JSON"
    HALF_LINE = "end of file inside a line"


@dataclass(frozen=True)
class Refuse:
    """Answer with an error and ask no one."""

    code: int
    retry_after: int | None = None


@dataclass(frozen=True)
class Kill:
    """End the operator before the call is passed on, or before its answer is."""

    side: Literal["before", "after"]


@dataclass(frozen=True)
class Lose:
    """Pass the call on, then close the connection instead of answering."""


@dataclass(frozen=True)
class Delay:
    """Wait before the call is passed on."""

    seconds: float


@dataclass(frozen=True)
class Replay:
    """Answer a list with what was remembered; keep a watch open and tell it nothing."""


@dataclass(frozen=True)
class Break:
    """Do this to a watch that is open, or that opens."""

    how: Breakage


@dataclass(frozen=True)
class Skip:
    """Do not pass an event on."""


@dataclass(frozen=True)
class Twice:
    """Pass an event on two times."""


Fault = Refuse | Kill | Lose | Delay | Replay | Break | Skip | Twice


@dataclass
class Rule:
    """A fault, and the calls that suffer it. What is left empty matches everything."""

    fault: Fault
    verbs: tuple[str, ...] = ()
    plural: str = ""
    name: str = ""
    type: str = ""
    later_pages: bool = False
    """Only pages of a list behind its first."""
    nth: int = 1
    """The first of the matching calls that is hit, from 1."""
    times: int = FOREVER
    """How many are hit."""
    seen: int = 0
    """Matching calls so far."""

    def matches(self, call: Call) -> bool:
        """Whether a call is of the kind that the rule is about."""
        return (
            (not self.verbs or call.verb in self.verbs)
            and self.plural in ("", call.plural)
            and self.name in ("", call.name)
            and self.type in ("", call.type)
            and (call.page > 0 or not self.later_pages)
        )

    @property
    def hits(self) -> int:
        """How many calls suffered the fault so far."""
        return max(0, min(self.seen - self.nth + 1, self.times))

    def take(self, call: Call) -> Fault | None:
        """Count a call, and return its fault if it is hit."""
        if not self.matches(call):
            return None
        self.seen += 1
        return self.fault if self.nth <= self.seen < self.nth + self.times else None


class Script:
    """The rules in force."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules = list(rules)

    def play(self, *rules: Rule) -> None:
        """Let these rules alone be in force from now on."""
        self.rules = list(rules)

    def fault(self, call: Call) -> Fault | None:
        """Return what happens to a call. Every rule that matches counts it."""
        found = [rule.take(call) for rule in self.rules]
        return next((fault for fault in found if fault is not None), None)


_METHODS = {"POST": "create", "DELETE": "delete", "PUT": "update"}
_PATCHES = {"application/apply-patch+yaml": "apply", "application/merge-patch+json": "merge"}


def call_of(method: str, target: str, content_type: str) -> Call:
    """Read a request's line.

    Args:
        method: As in HTTP.
        target: Path and query.
        content_type: Of the body.
    """
    url = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    parts = [part for part in url.path.split("/") if part]
    rest = parts[2:] if parts[:1] == ["api"] else parts[3:]
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = (*rest, "", "", "")[:3]
    page = 1 if query.get("continue") else 0
    return Call(
        _verb(method, name, subresource, query, content_type), plural, namespace, name, page=page
    )


def _verb(
    method: str, name: str, subresource: str, query: dict[str, str], content_type: str
) -> str:
    if method == "GET":
        if name:
            return "get"
        return "watch" if query.get("watch") in ("1", "true") else "list"
    if subresource == "status":
        return "status"
    return _METHODS.get(method) or _PATCHES.get(content_type, "patch")
