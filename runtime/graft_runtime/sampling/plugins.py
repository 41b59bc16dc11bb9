"""Installed logits processors, found by their entry points. Knows no tensor.

Both processes that use them, server and engine, load their own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from graft_runtime.errors import PluginError
from graft_runtime.ipc.messages import ProcessorCall
from graft_runtime.sampling.interface import ENTRY_POINT_GROUP, LogitsProcessor

logger = logging.getLogger(__name__)


class BoundProcessor(NamedTuple):
    """A processor with one request's arguments."""

    processor: LogitsProcessor
    arguments: Mapping[str, Any]


class Plugins:
    """Processors by name; each is loaded when it is asked for, and then kept."""

    def __init__(self, found: Iterable[EntryPoint] | None = None) -> None:
        """Look up names, load nothing.

        Args:
            found: The entry points; None takes those of the installed distributions.
        """
        found = entry_points(group=ENTRY_POINT_GROUP) if found is None else found
        self._found = {point.name: point for point in found}
        self._loaded: dict[str, LogitsProcessor] = {}

    def check(self, call: ProcessorCall, vocab_size: int) -> ProcessorCall:
        """Return a request's call with the arguments that the engine shall get.

        Raises:
            PluginError: There is no such processor, or it refuses the arguments.
        """
        processor = self.get(call.name)
        try:
            checked = processor.check(call.arguments, vocab_size)
        except ValueError as error:
            message = f"logits processor {call.name!r}: {error}"
            raise PluginError(message) from error
        return ProcessorCall(call.name, dict(checked))

    def bind(self, calls: Iterable[ProcessorCall]) -> tuple[BoundProcessor, ...]:
        """Return calls that have been checked as what can be run.

        Raises:
            PluginError: One cannot be loaded here.
        """
        return tuple(BoundProcessor(self.get(call.name), call.arguments) for call in calls)

    def get(self, name: str) -> LogitsProcessor:
        """Return a processor.

        Raises:
            PluginError: There is none of this name, or it cannot be loaded.
        """
        if name not in self._loaded:
            if name not in self._found:
                message = f"there is no logits processor {name[:80]!r}"
                raise PluginError(message)
            self._loaded[name] = _load(self._found[name])
        return self._loaded[name]


def _load(point: EntryPoint) -> LogitsProcessor:
    try:
        processor = point.load()()
    except Exception as error:
        logger.exception("a logits processor cannot be loaded", extra={"plugin": point.name})
        message = f"logits processor {point.name!r} cannot be loaded"
        raise PluginError(message) from error
    if not isinstance(processor, LogitsProcessor):
        message = f"logits processor {point.name!r} is none: {point.value} makes another thing"
        raise PluginError(message)
    return processor
