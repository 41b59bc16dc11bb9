"""Which tokens penalised requests have had, and how often: kept on the device from step to step.

A request has a slot; the host sends what changed, most often one token per row and step, and the
device looks up the rest. Changes say what a place holds, not what to add, so one that is sent twice
does no harm.

Source: repetition penalty, arXiv:1909.05858 section 4.1; presence and frequency as OpenAI defines
them.

Shape legend: n rows that are processed, V vocabulary, Q penalised rows, P slots, K places of a
slot, E changed places.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.sampling.batch import Penalties


class CountTable:
    """Distinct tokens of each slot with their counts. One per device; used in one thread."""

    def __init__(self, device: torch.device) -> None:
        self._ids_PK = torch.zeros(0, 0, dtype=torch.int64, device=device)
        self._counts_PK = torch.zeros(0, 0, dtype=torch.int32, device=device)

    def penalise(self, scores_nV: Tensor, penalties: Penalties, rows: npt.NDArray[np.intp]) -> None:
        """Take in what changed, then change scores in place.

        Args:
            scores_nV: float32 logits of some rows.
            penalties: Of the whole step.
            rows: Which row of the step each of the n is, ascending; all penalised are among them.
        """
        self._update(penalties)
        device = scores_nV.device
        slots_Q1 = _on(device, penalties.slots_Q)[:, None]
        last_Q1 = _on(device, penalties.sizes_Q)[:, None] - 1
        places_K = torch.arange(int(penalties.sizes_Q.max()), device=device)
        # Behind its last place a row says the same again, so that all rows are of one length.
        places_QK = torch.minimum(places_K, last_Q1)
        ids_QK = self._ids_PK[slots_Q1, places_QK]
        counts_QK = self._counts_PK[slots_Q1, places_QK]
        rows_Q1 = _on(device, np.searchsorted(rows, penalties.rows_Q))[:, None]
        repetition_Q1, presence_Q1, frequency_Q1 = (
            _on(device, column_Q)[:, None]
            for column_Q in (penalties.repetition_Q, penalties.presence_Q, penalties.frequency_Q)
        )
        scores_QK = scores_nV[rows_Q1, ids_QK]
        scores_QK = torch.where(scores_QK > 0, scores_QK / repetition_Q1, scores_QK * repetition_Q1)
        scores_QK -= frequency_Q1 * counts_QK + presence_Q1 * (counts_QK > 0)
        scores_nV[rows_Q1, ids_QK] = scores_QK

    def _update(self, penalties: Penalties) -> None:
        self._grow(int(penalties.slots_Q.max()) + 1, int(penalties.sizes_Q.max()))
        if not len(penalties.changed_slots_E):
            return
        device = self._ids_PK.device
        place = _on(device, penalties.changed_slots_E), _on(device, penalties.changed_places_E)
        self._ids_PK[place] = _on(device, penalties.changed_ids_E)
        self._counts_PK[place] = _on(device, penalties.changed_counts_E).to(torch.int32)

    def _grow(self, num_slots: int, num_places: int) -> None:
        """Make room by doubling; nothing that is known is lost."""
        had = self._ids_PK.shape
        if num_slots <= had[0] and num_places <= had[1]:
            return
        shape = (_room(had[0], num_slots), _room(had[1], num_places))
        for name in ("_ids_PK", "_counts_PK"):
            old_PK = getattr(self, name)
            new_PK = old_PK.new_zeros(shape)
            new_PK[: had[0], : had[1]] = old_PK
            setattr(self, name, new_PK)


def _room(had: int, needed: int) -> int:
    return had if needed <= had else max(needed, 2 * had)


def _on(device: torch.device, array: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(array).to(device)
