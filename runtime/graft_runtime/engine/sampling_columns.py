"""Requests' sampling parameters as columns.

Each request has its own as a record from the start, so that columns are made of records by the
hundred and not of attributes one by one.

Shape legend: S rows whose next token is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from graft_runtime.ipc.messages import Sampling

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


def record_of(sampling: Sampling, num_prompt: int) -> bytes:
    """Return what the columns say of one request."""
    parameters = (getattr(sampling, name) for name in _PARAMETERS)
    return np.array((*parameters, num_prompt), dtype=_RECORD).tobytes()


def columns_of(records: Iterable[bytes]) -> Columns:
    """Return the columns of requests, given the record of each."""
    records_S = np.frombuffer(b"".join(records), dtype=_RECORD)
    return {name: records_S[name].copy() for name in _RECORD.names or ()}
