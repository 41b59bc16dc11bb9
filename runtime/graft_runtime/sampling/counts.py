"""Which tokens penalised requests have had, and how often: kept on the device from step to step.

A request has a slot. The device is told its tokens once, and then adds each one that it samples,
so that the host has nothing to say of a request that goes on. What is told replaces all that the
slot held, so that one told again, after a step that may or may not have added its token, is right.

A slot lists its distinct tokens: a row has hundreds of them, a vocabulary many thousands. A number
for each token of the vocabulary would be found without a search, but takes 130 MB for 256 slots of
128,000 tokens, and on a CPU it takes 50 times as long to penalise them all (51 rows that have 256
of 32,000 tokens).

Nothing here waits for a device. Only the device knows how many distinct tokens a slot has; where
that cannot be read without waiting, rows are as wide as the number of sampled tokens allows.

Source: repetition penalty, arXiv:1909.05858 section 4.1; presence and frequency as OpenAI defines
them.

Shape legend: n rows that are processed, S rows of the step, V vocabulary, Q penalised rows, P
slots, K places of a slot, U rows that are told, E tokens of all of these.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from graft_runtime.sampling.batch import IntArray, Penalties, ToldTokens


class Counted(NamedTuple):
    """Penalised rows' tokens when a step begins. Behind its last one, a row has its first again."""

    rows_Q: Tensor
    """Indices into S."""
    slots_Q: Tensor
    sizes_Q: Tensor
    """How many distinct ones there are; 1 at least."""
    ids_QK: Tensor
    counts_QK: Tensor
    """How often the output has it; 0 for one that only the prompt has."""


class CountTable:
    """Distinct tokens of each slot with their counts. One per device; used in one thread."""

    def __init__(self, device: torch.device) -> None:
        self._sizes_P = torch.zeros(0, dtype=torch.int64, device=device)
        self._ids_PK = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._counts_PK = torch.zeros(0, 0, dtype=torch.int32, device=device)
        self._device = device
        self._is_at_hand = device.type == "cpu"
        """Whether numbers can be read without waiting for a device."""

    def look_up(self, penalties: Penalties, position_S: IntArray) -> Counted:
        """Take in what is told, then return what the rows have had.

        Args:
            penalties: Of the whole step.
            position_S: Index of each row's new token in its request's output.
        """
        # A row has no more distinct tokens than those of its prompt and one for each in its output.
        most = int((penalties.prompt_sizes_Q + position_S[penalties.rows_Q]).max())
        # Each row may get one more in this step.
        self._grow(int(penalties.slots_Q.max()) + 1, most + 1)
        if penalties.told is not None:
            self._take(penalties.told)
        rows_Q = _on(self._device, penalties.rows_Q)
        slots_Q = _on(self._device, penalties.slots_Q)
        sizes_Q = self._sizes_P[slots_Q]
        width = int(sizes_Q.max()) if self._is_at_hand else most
        is_behind_QK = torch.arange(width, device=self._device) >= sizes_Q[:, None]
        # Whole rows, and then what is behind is replaced: to gather place by place takes longer.
        ids_QK = self._ids_PK[:, :width].index_select(0, slots_Q)
        counts_QK = self._counts_PK[:, :width].index_select(0, slots_Q)
        ids_QK = torch.where(is_behind_QK, ids_QK[:, :1], ids_QK)
        counts_QK = torch.where(is_behind_QK, counts_QK[:, :1], counts_QK)
        return Counted(rows_Q, slots_Q, sizes_Q, ids_QK, counts_QK)

    def add(self, counted: Counted, tokens_S: Tensor) -> None:
        """Count what the rows have got in the step.

        Args:
            counted: What they had before.
            tokens_S: int64, of all rows; a negative one is none.
        """
        rows_Q, slots_Q, sizes_Q, ids_QK, _ = counted
        tokens_Q = tokens_S[rows_Q]
        # The first place of several, and so never one behind the last.
        is_known_Q, place_Q = (ids_QK == tokens_Q[:, None]).max(dim=-1)
        is_new_Q = ~is_known_Q
        # What is not a token goes behind the last place, too, and that stays the last.
        where = slots_Q, torch.where(is_new_Q, sizes_Q, place_Q)
        counts_Q = self._counts_PK[where].masked_fill_(is_new_Q, 0)  # another request's, if any
        self._ids_PK[where] = tokens_Q
        self._counts_PK[where] = counts_Q + 1
        self._sizes_P[slots_Q] = sizes_Q + (is_new_Q & (tokens_Q >= 0))

    def _take(self, told: ToldTokens) -> None:
        """Replace what slots hold."""
        slots_E = np.repeat(told.slots_U, told.sizes_U)
        firsts_U = np.cumsum(told.sizes_U) - told.sizes_U
        places_E = np.arange(len(slots_E)) - np.repeat(firsts_U, told.sizes_U)
        where = _on(self._device, slots_E), _on(self._device, places_E)
        self._ids_PK[where] = _on(self._device, told.ids_E)
        self._counts_PK[where] = _on(self._device, told.counts_E).to(torch.int32)
        self._sizes_P[_on(self._device, told.slots_U)] = _on(self._device, told.sizes_U)

    def _grow(self, num_slots: int, num_places: int) -> None:
        """Make room by doubling; nothing that is known is lost."""
        had_slots, had_places = self._ids_PK.shape
        if num_slots <= had_slots and num_places <= had_places:
            return
        more = (0, _room(had_places, num_places) - had_places)
        more_slots = (0, _room(had_slots, num_slots) - had_slots)
        grown = [pad(each, (*more, *more_slots)) for each in (self._ids_PK, self._counts_PK)]
        self._sizes_P = pad(self._sizes_P, more_slots)
        self._ids_PK, self._counts_PK = grown


def penalise(
    scores_nV: Tensor, counted: Counted, penalties: Penalties, rows: npt.NDArray[np.intp]
) -> None:
    """Change scores in place.

    Args:
        scores_nV: float32 logits of some rows.
        counted: What the penalised ones have had.
        penalties: Of the whole step.
        rows: Which row of the step each of the n is, ascending; all penalised are among them.
    """
    device = scores_nV.device
    ids_QK, counts_QK = counted.ids_QK, counted.counts_QK
    rows_Q1 = _on(device, np.searchsorted(rows, penalties.rows_Q))[:, None]
    repetition_Q1, presence_Q1, frequency_Q1 = (
        _on(device, column_Q)[:, None]
        for column_Q in (penalties.repetition_Q, penalties.presence_Q, penalties.frequency_Q)
    )
    scores_QK = scores_nV[rows_Q1, ids_QK]
    scores_QK = torch.where(scores_QK > 0, scores_QK / repetition_Q1, scores_QK * repetition_Q1)
    scores_QK -= frequency_Q1 * counts_QK + presence_Q1 * (counts_QK > 0)
    scores_nV[rows_Q1, ids_QK] = scores_QK


def _room(had: int, needed: int) -> int:
    return had if needed <= had else max(needed, 2 * had)


def _on(device: torch.device, array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array).to(device)
