"""Names of revisions: ``<namespace>/<name>@<digest12>`` or ``...@pending-<spec hash>``."""

from __future__ import annotations

from typing import NamedTuple

from graft_protocol.digest import short_digest

PENDING_PREFIX = "pending-"
RUNTIME_NAMESPACE = "runtime:"
"""Of revisions that clients loaded over HTTP: no namespace of Kubernetes has such a name."""


class RevisionName(NamedTuple):
    """A parsed revision name."""

    namespace: str
    name: str
    version: str

    @property
    def adapter(self) -> str:
        """The adapter's full name, ``<namespace>/<name>``."""
        return f"{self.namespace}/{self.name}"

    @property
    def is_pending(self) -> bool:
        """Whether the content is not known yet, so that the revision is never served."""
        return self.version.startswith(PENDING_PREFIX)

    def __str__(self) -> str:
        return f"{self.adapter}@{self.version}"


def pinned_revision(namespace: str, name: str, digest: str) -> str:
    """Return the name of the revision with this content."""
    return str(RevisionName(namespace, name, short_digest(digest)))


def pending_revision(namespace: str, name: str, spec_hash: str) -> str:
    """Return the name of a revision whose digest one pod has yet to find."""
    return str(RevisionName(namespace, name, f"{PENDING_PREFIX}{spec_hash}"))


def parse_revision(text: str) -> RevisionName:
    """Split a revision name.

    Raises:
        ValueError: ``text`` does not have the form ``<namespace>/<name>@<version>``.
    """
    adapter, at, version = text.rpartition("@")
    namespace, slash, name = adapter.partition("/")
    if not (at and slash and namespace and name and version):
        message = f"{text!r} is not <namespace>/<name>@<version>"
        raise ValueError(message)
    return RevisionName(namespace, name, version)
