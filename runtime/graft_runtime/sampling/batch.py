"""How each row of a step is sampled, as flat arrays on the host. Knows no request and no tensor.

The engine's plan carries one; the sampler reads it.

Shape legend: S rows whose next token is chosen, B biased tokens of all rows, A allowed tokens of
all rows, Q penalised rows, U those whose tokens are told, E distinct tokens of all of these, G rows
that follow a grammar, W words of one bit per token, F rows whose token is settled, N named tokens
of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graft_runtime.ipc.messages import Watermark
from graft_runtime.sampling.interface import DeviceLogitsProcessor, Row

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Edits:
    """Changes to single tokens' logits, before anything is narrowed. Rows are indices into S."""

    bias_rows_B: IntArray
    bias_ids_B: IntArray
    bias_B: FloatArray
    """Added to the logit; -infinity forbids. Entries for one token add up."""
    allowed_rows_A: IntArray
    """A row that is named here may have no token but those named with it."""
    allowed_ids_A: IntArray

    def rows(self) -> IntArray:
        """Return the rows that are changed, ascending."""
        return np.union1d(self.bias_rows_B, self.allowed_rows_A)


@dataclass(frozen=True)
class ToldTokens:
    """All tokens of requests that the device does not know yet."""

    slots_U: IntArray
    sizes_U: IntArray
    """How many distinct tokens prompt and output have; 1 at least."""
    ids_E: IntArray
    counts_E: IntArray
    """How often the output has each; 0 for one that only the prompt has."""


@dataclass(frozen=True)
class Penalties:
    """Rows whose tokens so far have a say. The device knows these tokens, or is told."""

    rows_Q: IntArray
    """Indices into S, ascending."""
    slots_Q: IntArray
    """Where on the device each request's counts are; no two have the same."""
    prompt_sizes_Q: IntArray
    """How many distinct tokens its prompt has; 1 at least."""
    repetition_Q: FloatArray
    """1 is off. Divides positive and multiplies negative logits of all these tokens."""
    presence_Q: FloatArray
    """0 is off. Subtracted once from tokens of the output."""
    frequency_Q: FloatArray
    """0 is off. Subtracted for each time that the output has the token."""
    told: ToldTokens | None = None
    """Of the rows whose requests the device does not know."""


@dataclass(frozen=True)
class TokenMasks:
    """Which tokens rows may have at all, packed. Rows are indices into S, ascending."""

    rows_G: IntArray
    words_GW: npt.NDArray[np.int32]
    """The lowest bit of the first word is token 0; a bit that is not set forbids."""


@dataclass(frozen=True)
class NamedTokens:
    """Tokens whose log probabilities are wanted whatever they are, row by row."""

    rows_N: IntArray
    """Indices into S, ascending."""
    ids_N: IntArray


@dataclass(frozen=True)
class ForcedTokens:
    """Rows whose token is settled, against all that else is asked of them."""

    rows_F: IntArray
    """Indices into S, ascending."""
    ids_F: IntArray


@dataclass(frozen=True)
class WatermarkedRow:
    """A row whose token carries a watermark."""

    row: int
    """Index into S."""
    watermark: Watermark
    context: tuple[int, ...]
    """The last tokens before it, as many as the watermark asks for if there are so many."""


@dataclass(frozen=True)
class DeviceCall:
    """A device logits processor's work on one row."""

    index: int
    """Of the row, in S."""
    rank: int
    """The processor's place among those of its request."""
    processor: DeviceLogitsProcessor
    row: Row


@dataclass(frozen=True)
class SamplingBatch:
    """Parameters of each row."""

    temperature_S: FloatArray
    """0 is greedy."""
    top_k_S: npt.NDArray[np.int32]
    """0 is off."""
    top_p_S: FloatArray
    """1 is off."""
    min_p_S: FloatArray
    """0 is off."""
    typical_p_S: FloatArray
    """1 is off."""
    seed_S: npt.NDArray[np.uint64]
    sample_index_S: IntArray
    """Which of several answers to one request the row is."""
    position_S: IntArray
    """Index of the token in its request's output."""
    wants_logprobs: bool
    """Whether anyone wants log probabilities."""
    num_top_S: IntArray
    """How many of the likeliest tokens are wanted with their log probabilities."""
    is_processed_S: BoolArray
    """Whether log probabilities are those of the distribution that is drawn from."""
    edits: Edits | None
    penalties: Penalties | None = None
    masks: TokenMasks | None = None
    forced: ForcedTokens | None = None
    named: NamedTokens | None = None
    watermarked: tuple[WatermarkedRow, ...] = ()
    """In the order of their rows."""
    device_calls: tuple[DeviceCall, ...] = ()
