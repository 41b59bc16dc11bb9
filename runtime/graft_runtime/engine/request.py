"""One request as the engine sees it: token ids, progress, and the resources it holds.

Shape legend: H hidden size.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from graft_runtime.engine.kv_cache import RELEASED, BlockKey, next_key, root_key
from graft_runtime.engine.sampling_columns import record_of
from graft_runtime.engine.thoughts import ThoughtWatch
from graft_runtime.engine.token_rules import TokenRules
from graft_runtime.errors import GraftRuntimeError
from graft_runtime.ipc.messages import FinishReason, Sampling, TokenScore
from graft_runtime.sampling.batch import FloatArray
from graft_runtime.sampling.grammar import GrammarState
from graft_runtime.sampling.plugins import BoundProcessor


@dataclass(slots=True, eq=False)
class Request:
    """A sequence of tokens on its way.

    ``tokens`` is the prompt followed by the output, as far as the host knows it; ``length`` counts
    those that are being sampled, too. ``num_computed`` of them have their keys and values in the
    cache, or are in a step that has been launched; a request decodes when exactly one is left to
    launch.
    """

    request_id: str
    tokens: list[int]
    num_prompt: int
    sampling: Sampling
    adapter: str | None
    arrival: int
    """Order of arrival, the only notion of age in the scheduler."""
    max_length: int = sys.maxsize
    """Prompt and output together never become longer, in tokens."""
    tenant: str = ""
    """Who shares the engine's time with whom; see `FairShare`."""
    tenant_weight: float = 1.0
    priority: int = 0
    """Class of the request: a lower number goes first, whatever is owed to whom."""
    salt: str = ""
    """Keys and values are shared only between requests that have the same one."""
    stop_ids: frozenset[int] = frozenset()
    rules: TokenRules | None = None
    processors: tuple[BoundProcessor, ...] = ()
    """Logits processors of plugins, in the order in which they were asked for."""
    grammar: GrammarState | None = None
    """How far the output has come in its grammar. It lives as long as the request, so a preempted
    one goes on where it was."""
    thought: ThoughtWatch | None = None
    """How long the output has thought, if it may not as long as it likes; lives on as `grammar`."""
    rope_variant: int = 0
    """See `RopeSpec.variant`; the same from the first token to the last."""
    num_computed: int = 0
    length: int = field(init=False)
    """Tokens so far, those included that launched steps will bring."""
    in_cohort: bool = False
    """Whether it decodes in a `Cohort`: then the two above are of no meaning until it leaves."""
    sampled_row: int = 0
    """Where its pending token is among those that the latest step samples."""
    blocks: list[int] = field(default_factory=list)
    """Its table: the block of each ``block_size`` tokens, in order."""
    num_released: int = 0
    """How many of the first of these were given back: no layer sees that far any more."""
    keys: list[BlockKey] = field(default_factory=list)
    """Keys of the full blocks of ``tokens``, as far as they have been needed."""
    slot: int = 0
    """Device slot of the adapter while running; 0 for the base model."""
    holds_adapter: bool = False
    """Whether the adapter must stay known for its sake."""
    num_cached: int = 0
    """Prompt tokens that were found in the cache when it was first admitted."""
    num_charged: int = 0
    """Prompt tokens that its tenant has been charged for, or got from the cache."""
    admitted: bool = False
    """Whether it has run before; a second time means that it was preempted."""
    has_started: bool = False
    """Whether it has been launched once, whatever became of that."""
    length_at_admission: int = 0
    """How many tokens it had when it was last admitted, pending ones included."""
    epoch: int = 0
    """How often it was preempted: what was launched in an earlier epoch computed for nothing."""
    has_ended: bool = False
    """Whether nothing more is to be said to its client."""

    prompt_scores: list[TokenScore] = field(default_factory=list)
    """Of the prompt's second token and those after it, as far as known."""
    pooled_H: FloatArray | None = None
    """Sum of the hidden states that are pooled, as far as known."""
    num_scored: int = 0
    """How many of these are known or will come from launched steps."""

    is_plain: bool = field(init=False)
    """Whether nothing is wanted but tokens."""
    is_followed: bool = field(init=False)
    """Whether something on the host takes in each of its tokens."""
    is_free: bool = field(init=False)
    """Whether its next token depends on logits and parameters alone, and not on its last ones."""
    sampling_record: bytes = field(init=False)
    """Its parameters; see `graft_runtime.engine.sampling_columns`."""

    def __post_init__(self) -> None:
        # Kept, and not properties: they are asked of all rows whenever some come or go.
        sampling = self.sampling
        self.length = len(self.tokens)
        self.is_plain = sampling.prompt_logprobs is None and sampling.pooling is None
        self.is_followed = sampling.grammar is not None or self.thought is not None
        has_rules = self.rules is not None or sampling.watermark is not None
        self.is_free = not (self.is_followed or has_rules or self.processors)
        self.sampling_record = record_of(sampling, self.num_prompt)

    @property
    def is_scoring(self) -> bool:
        """Whether tokens of its prompt are still to be scored, so that none may come from cache."""
        if self.sampling.prompt_logprobs is None:
            return False
        return self.num_scored < self.num_prompt - 1

    @property
    def needs_all(self) -> bool:
        """Whether something is wanted of every token, so that none may come from the cache."""
        return self.is_scoring or self.sampling.pooling == "mean"

    def pool(self, start: int, sum_H: FloatArray) -> None:
        """Add hidden states. One that was preempted begins anew at its start."""
        if start and self.pooled_H is not None:
            sum_H = sum_H + self.pooled_H
        self.pooled_H = sum_H

    @property
    def num_output(self) -> int:
        """Tokens generated so far, as far as the host knows."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_remaining(self) -> int:
        """Tokens still to launch before the next one can be sampled."""
        return self.length - self.num_computed

    @property
    def is_complete(self) -> bool:
        """Whether the tokens that are being sampled are its last ones, whatever they are."""
        return self.length >= self.max_length

    @property
    def may_yield(self) -> bool:
        """Whether it has gained a token since it was admitted, so that it may be preempted."""
        return self.length > self.length_at_admission

    @property
    def rank(self) -> tuple[int, int]:
        """Order among running requests: the last one gives way first."""
        return self.priority, self.arrival

    def block_keys(self, count: int, block_size: int) -> list[BlockKey]:
        """Return the keys of the first ``count`` blocks; all of them must be full of tokens."""
        if not self.keys:
            parent = root_key(self.adapter, self.rope_variant, self.salt)
        else:
            parent = self.keys[-1]
        for index in range(len(self.keys), count):
            parent = next_key(parent, self.tokens[index * block_size : (index + 1) * block_size])
            self.keys.append(parent)
        return self.keys[:count]

    def take(self, found: list[int], new: list[int]) -> None:
        """Begin a table with what the prefix cache had, and blocks for what is to be computed."""
        self.blocks = found + new
        self.num_released = found.count(RELEASED)

    def release(self, end: int) -> list[int]:
        """Take the first ``end`` blocks out of the table; return those that were still in it."""
        behind = self.blocks[self.num_released : end]
        if behind:
            self.blocks[self.num_released : end] = [RELEASED] * len(behind)
            self.num_released = end
        return behind

    def check_integrity(self) -> None:
        """Check that the table lacks its released blocks and no other.

        Raises:
            GraftRuntimeError: It does not.
        """
        first = self.num_released
        if self.blocks.count(RELEASED) != first or RELEASED in self.blocks[first:]:
            message = f"{self.request_id} lacks blocks: {self.blocks}, {first} were released"
            raise GraftRuntimeError(message)

    def append(self, token_id: int) -> FinishReason | None:
        """Add a sampled token and tell whether the request ends with it."""
        self.tokens.append(token_id)
        if self.thought is not None:
            self.thought.add(token_id)
        # Before `min_tokens` a stop token can only be one that ends a thought.
        if token_id in self.stop_ids and self.num_output > self.sampling.min_tokens:
            return "stop"
        if self.grammar is not None and _completes(self.grammar, token_id):
            return "stop"
        return "length" if len(self.tokens) >= self.max_length else None


def _completes(grammar: GrammarState, token_id: int) -> bool:
    grammar.advance(token_id)
    return grammar.is_complete
