"""One request as the engine sees it: token ids, progress, and the resources it holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from graft_runtime.engine.kv_cache import BlockKey, next_key, root_key
from graft_runtime.engine.token_rules import TokenRules
from graft_runtime.ipc.messages import FinishReason, Sampling, TokenScore
from graft_runtime.sampling.grammar import GrammarState


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
    rules: TokenRules | None = None
    grammar: GrammarState | None = None
    """How far the output has come in its grammar. It lives as long as the request, so a preempted
    one goes on where it was."""
    rope_variant: int = 0
    """See `RopeSpec.variant`; the same from the first token to the last."""
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)
    keys: list[BlockKey] = field(default_factory=list)
    """Keys of the full blocks of ``tokens``, as far as they have been needed."""
    slot: int = 0
    """Device slot of the adapter while running; 0 for the base model."""
    num_cached: int = 0
    """Prompt tokens that were found in the cache when it was first admitted."""
    admitted: bool = False
    """Whether it has run before; a second time means that it was preempted."""

    prompt_scores: list[TokenScore] = field(default_factory=list)
    """Of the prompt's second token and those after it, as far as known."""

    @property
    def is_scoring(self) -> bool:
        """Whether tokens of its prompt are still to be scored, so that none may come from cache."""
        wanted = self.sampling.prompt_logprobs is not None
        return wanted and len(self.prompt_scores) < self.num_prompt - 1

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    def block_keys(self, count: int, block_size: int) -> list[BlockKey]:
        """Return the keys of the first ``count`` blocks; all of them must be full of tokens."""
        parent = self.keys[-1] if self.keys else root_key(self.adapter, self.rope_variant)
        for index in range(len(self.keys), count):
            parent = next_key(parent, self.tokens[index * block_size : (index + 1) * block_size])
            self.keys.append(parent)
        return self.keys[:count]

    def append(self, token_id: int, max_model_len: int) -> FinishReason | None:
        """Add a sampled token and tell whether the request ends with it."""
        self.tokens.append(token_id)
        if self.rules is not None:
            self.rules.add(token_id)
        if token_id in self.stop_ids or self._completes_grammar(token_id):
            return "stop"
        if self.num_output >= self.sampling.max_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None

    def _completes_grammar(self, token_id: int) -> bool:
        if self.grammar is None:
            return False
        self.grammar.advance(token_id)
        return self.grammar.is_complete
