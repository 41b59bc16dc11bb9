"""What a step has to say, and what has been done since start."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft_runtime.ipc.messages import AdapterResidency, TokenOutput


@dataclass
class Counters:
    """What has been done since start."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


@dataclass
class StepReport:
    """Everything one step has to say, for one message."""

    outputs: list[TokenOutput] = field(default_factory=list)
    adapters: list[AdapterResidency] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    """Requests that were launched for the first time."""
    num_tokens: int = 0
    """Tokens launched or retired. 0 with requests waiting: all of them wait for adapters."""
