"""One request as the engine sees it: token ids, progress, and the resources it holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft_runtime.ipc.messages import FinishReason, Sampling


@dataclass(slots=True, eq=False)
class Request:
    """A sequence of tokens on its way.

    ``tokens`` is the prompt followed by the output. ``num_computed`` of them have their keys and
    values in the cache; a request decodes when exactly one is left to compute.
    """

    request_id: str
    tokens: list[int]
    num_prompt: int
    sampling: Sampling
    adapter: str | None
    arrival: int
    """Order of arrival, the only notion of age in the scheduler."""
    stop_ids: frozenset[int] = frozenset()
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int = 0
    """Device slot of the adapter while running; 0 for the base model."""

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    def append(self, token_id: int, max_model_len: int) -> FinishReason | None:
        """Add a sampled token and tell whether the request ends with it."""
        self.tokens.append(token_id)
        if token_id in self.stop_ids:
            return "stop"
        if self.num_output >= self.sampling.max_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None
