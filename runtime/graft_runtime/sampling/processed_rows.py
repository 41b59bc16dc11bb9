"""Run device logits processors on their rows of a step.

Shape legend: n rows that are processed, V vocabulary, k rows of one processor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.sampling.batch import DeviceCall
from graft_runtime.sampling.interface import DeviceLogitsProcessor


def apply_processors(
    scores_nV: Tensor, calls: tuple[DeviceCall, ...], rows: npt.NDArray[np.intp]
) -> None:
    """Change scores in place.

    A processor gets a copy of its own rows, so it can do nothing to the others. One request's
    processors run in the order in which it named them.

    Args:
        scores_nV: float32 logits of some rows.
        calls: Of the whole step.
        rows: Which row of the step each of the n is, ascending; all of the calls' are among them.
    """
    for rank in sorted({call.rank for call in calls}):
        groups: dict[int, tuple[DeviceLogitsProcessor, list[DeviceCall]]] = {}
        for call in calls:
            if call.rank == rank:
                groups.setdefault(id(call.processor), (call.processor, []))[1].append(call)
        for processor, own in groups.values():
            places = np.searchsorted(rows, [call.index for call in own])
            places_k = torch.from_numpy(places).to(scores_nV.device)
            scores_kV = scores_nV[places_k]
            processor.apply(scores_kV, [call.row for call in own])
            scores_nV[places_k] = scores_kV
