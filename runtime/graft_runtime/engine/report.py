"""What a step has to say, and what has been done since start."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft_runtime.engine.batch import Batch
from graft_runtime.ipc.messages import AdapterResidency, StepFacts, TokenOutput


@dataclass
class Counters:
    """What has been done since start."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


@dataclass
class StepReport:
    """Everything one step has to say, for one message."""

    said: list[TokenOutput] = field(default_factory=list)
    """All outputs but those of ``more_ids``."""
    more_ids: list[str] = field(default_factory=list)
    """Requests that have got one more token and nothing else."""
    more_tokens: list[int] = field(default_factory=list)
    """What each of them got."""
    adapters: list[AdapterResidency] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    """Requests that were launched for the first time."""
    steps: list[StepFacts] = field(default_factory=list)
    """The step that was retired, if one was."""
    num_tokens: int = 0
    """Tokens launched or retired. 0 with requests waiting: all of them wait for adapters."""

    @property
    def outputs(self) -> list[TokenOutput]:
        """All outputs, each one whole."""
        more = zip(self.more_ids, self.more_tokens, strict=True)
        return [*self.said, *(TokenOutput(name, [token]) for name, token in more)]

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing for anybody."""
        return not (self.said or self.more_ids or self.started)


def step_facts(batch: Batch, *, failed: bool) -> StepFacts:
    """Return what a step's rows computed."""
    prompt, output = 0, len(batch.decodes)
    for row in batch.others:
        prompt_left = row.request.num_prompt - row.start
        if prompt_left > 0:
            prompt += min(row.num_tokens, prompt_left)
        output += row.samples
    return StepFacts(prompt, output, failed)
