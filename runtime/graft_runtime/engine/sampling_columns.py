"""Requests' sampling parameters as columns, which change only where requests come and go.

Shape legend: S rows whose next token is chosen.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from graft_runtime.engine.request import Request

Columns = dict[str, npt.NDArray[Any]]
"""[S] each, by the names of `Sampling`, and ``num_prompt``."""

_PARAMETERS: Final = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "typical_p": np.float32,
    "seed": np.uint64,
    "sample_index": np.int64,
    "logprobs": np.bool_,
    "top_logprobs": np.int64,
    "processed_logprobs": np.bool_,
    "repetition_penalty": np.float32,
    "presence_penalty": np.float32,
    "frequency_penalty": np.float32,
}
_RECORD: Final = np.dtype([*_PARAMETERS.items(), ("num_prompt", np.int64)])


class SamplingColumns:
    """The columns of the requests that were last asked for."""

    def __init__(self) -> None:
        self._places: dict[Request, int] = {}
        self._records_S = np.zeros(0, dtype=_RECORD)

    def of(self, requests: list[Request]) -> Columns:
        """Return the columns of these requests; those known from the last time are not read."""
        places = self._places
        known_S = np.array([places.get(one, -1) for one in requests], dtype=np.int64)
        records_S = np.zeros(len(requests), dtype=_RECORD)
        is_known_S = known_S >= 0
        records_S[is_known_S] = self._records_S[known_S[is_known_S]]
        for place in np.flatnonzero(~is_known_S).tolist():
            records_S[place] = _record(requests[place])
        self._places = {one: place for place, one in enumerate(requests)}
        self._records_S = records_S
        return {name: records_S[name].copy() for name in _RECORD.names or ()}


def _record(request: Request) -> tuple[Any, ...]:
    parameters = (getattr(request.sampling, name) for name in _PARAMETERS)
    return (*parameters, request.num_prompt)
