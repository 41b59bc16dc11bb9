"""The public interface of logits processors: what a plugin's author implements.

A plugin is an installed distribution with an entry point in the group ``graft.logits_processors``
that names a subclass of one of the two classes below. The server process loads it to check
requests' arguments, so its module must not import torch at the top; the engine process loads it to
change scores. `docs/sampling.md` has a walk-through and ``examples/logits_processors`` one that
works.

A processor is a function of its arguments and the tokens so far, nothing else: then its request
gets the same tokens alone and in any company, and after preemption.

Shape legend: n rows that use the processor in this step, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ENTRY_POINT_GROUP: Final = "graft.logits_processors"


@dataclass(frozen=True)
class Row:
    """One request at one position of its output."""

    arguments: Mapping[str, Any]
    """As `LogitsProcessor.check` returned them."""
    tokens: Sequence[int]
    """Prompt and output so far."""
    num_prompt: int
    """How many of them are the prompt."""


class LogitsProcessor:
    """Base of both kinds. Made once per process, without arguments."""

    def check(self, arguments: Mapping[str, Any], vocab_size: int) -> Mapping[str, Any]:
        """Return a request's arguments as the engine shall get them. Called in the server process.

        Args:
            arguments: What the client sent, any JSON.
            vocab_size: One more than the largest token id.

        Raises:
            ValueError: They cannot be used; the text goes to the client, with status 400.
        """
        del vocab_size
        if arguments:
            message = "takes no arguments"
            raise ValueError(message)
        return arguments


class HostLogitsProcessor(LogitsProcessor, ABC):
    """Decides from the tokens alone. Runs on the host while the device computes the logits."""

    @abstractmethod
    def bias(self, row: Row) -> Mapping[int, float]:
        """Return what to add to single tokens' logits; negative infinity forbids a token."""


class DeviceLogitsProcessor(LogitsProcessor, ABC):
    """Sees the scores. Runs on the device, once a step for all requests that use it."""

    @abstractmethod
    def apply(self, scores_nV: Any, rows: Sequence[Row]) -> None:
        """Change scores in place, after biases, penalties and grammars.

        A row that gets a NaN ends its request with an error.

        Args:
            scores_nV: A float32 tensor of torch. (Not so declared, because the server imports this
                and must not import torch.) Its rows are those of the processor's own requests.
            rows: What is known of each.
        """
