"""From a model name in a request to one revision. Pure; knows names, weights and availability."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

from graft_protocol.reasons import REASONS, Reason
from graft_runtime.adapters.revision import Phase, Revision
from graft_runtime.errors import AdapterUnavailableError, ModelNotFoundError

RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True)
class Route:
    """One name and the revisions behind it."""

    name: str
    revisions: tuple[Revision, ...]

    def choose(self, key: str) -> Revision:
        """Pick a revision for one request; the caller waits for one that is only near.

        Args:
            key: What decides among the weights. The same one picks the same revision, on every
                pod; when weights shift, it changes its revision only if that one lost weight or
                the other gained.

        Raises:
            AdapterUnavailableError: None can serve yet, but one may soon.
            ModelNotFoundError: None can serve, and none will without a change.
        """
        serving = [revision for revision in self.revisions if revision.serves]
        weighted = [revision for revision in serving if revision.entry.weight]
        if weighted:
            return max(weighted, key=lambda revision: _score(revision, key))
        if serving:
            return serving[0]
        near = [revision for revision in self.revisions if revision.is_near]
        if near:
            return max(near, key=lambda revision: revision.entry.weight)
        if any(_may_come(revision) for revision in self.revisions):
            message = f"The model `{self.name}` is being loaded."
            raise AdapterUnavailableError(
                message, param="model", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        raise unknown_model(self.name)


def build_routes(revisions: Iterable[Revision]) -> dict[str, Route]:
    """Group revisions by every name they answer to; draining ones answer to none."""
    by_name: dict[str, list[Revision]] = {}
    for revision in revisions:
        if revision.phase is Phase.DRAINING:
            continue
        entry = revision.entry
        for name in dict.fromkeys((entry.served_name, *entry.aliases)):
            by_name.setdefault(name, []).append(revision)
    return {name: Route(name, tuple(group)) for name, group in by_name.items()}


def unknown_model(name: str) -> ModelNotFoundError:
    """Return the one answer for names that are absent, failed or forbidden: they look alike."""
    return ModelNotFoundError(f"The model `{name}` does not exist.", param="model")


def _score(revision: Revision, key: str) -> float:
    """Return a revision's score for a key; the highest wins, in proportion to the weights."""
    text = f"{revision.entry.revision}\n{key}".encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
    return -revision.entry.weight / math.log((number + 0.5) / 2**64)


def _may_come(revision: Revision) -> bool:
    """Whether waiting may help; a missing source or refused credential is for its owner to see."""
    if revision.phase is not Phase.FAILED:
        return True
    return REASONS[revision.reason].retry != "terminal" and revision.reason not in (
        Reason.SOURCE_NOT_FOUND,
        Reason.SOURCE_FORBIDDEN,
    )
