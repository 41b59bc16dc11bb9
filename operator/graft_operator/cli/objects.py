"""Finds objects in the state of a running local mode, by what a person types."""

from __future__ import annotations

import click

from graft_operator.cluster.state import Snapshot
from graft_operator.constants import KIND_ADAPTER, KIND_SERVICE
from graft_operator.resources.meta import Manifest, key_of

_WORDS = {
    KIND_SERVICE: ("services", "service", "gis", "inferenceservices", "inferenceservice"),
    KIND_ADAPTER: ("adapters", "adapter", "lora", "loras", "loraadapters", "loraadapter"),
}
KINDS_OF: dict[str, tuple[str, ...]] = {
    word: (kind,) for kind, words in _WORDS.items() for word in words
}
KINDS_OF["all"] = (KIND_SERVICE, KIND_ADAPTER)


def parse_what(what: str) -> tuple[tuple[str, ...], str | None]:
    """Return the kinds and the name, if any, that ``KIND`` or ``KIND/NAME`` means.

    Raises:
        click.UsageError: No such kind.
    """
    word, _, name = what.partition("/")
    kinds = KINDS_OF.get(word.lower())
    if kinds is None:
        raise click.UsageError(f"{word!r} is none of services, adapters, all")
    return kinds, name or None


def select(snapshot: Snapshot, kinds: tuple[str, ...], name: str | None) -> list[Manifest]:
    """Return the objects of some kinds, by name; `name` may be ``namespace/name``.

    Raises:
        click.ClickException: An object was named and does not exist.
    """
    found = [item for item in snapshot.objects if item["kind"] in kinds and _is_named(item, name)]
    if name is not None and not found:
        raise click.ClickException(f"{'/'.join(kinds)} {name} does not exist")
    return sorted(found, key=lambda item: (kinds.index(item["kind"]), key_of(item)))


def _is_named(item: Manifest, name: str | None) -> bool:
    key = key_of(item)
    return name is None or name in (key.name, f"{key.namespace}/{key.name}")
