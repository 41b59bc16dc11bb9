"""A step as flat arrays: everything a runner needs and nothing that refers to a request.

Because it is plain numbers it can be sent to tensor-parallel ranks as it is.

Shape legend: T tokens, R rows (requests), S rows whose logits are wanted, N block ids of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graft_runtime.engine.scheduler import Row

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepPlan:
    """One step. Offsets end with the total, as in CSR matrices."""

    token_ids_T: IntArray
    positions_T: IntArray
    slot_mapping_T: IntArray
    """Where each token's key and value go: ``block * block_size + offset``."""
    query_starts: IntArray
    """[R + 1] where each row's tokens begin in T."""
    seq_lens_R: IntArray
    """Context length of each row, this step's tokens included."""
    block_starts: IntArray
    """[R + 1] where each row's blocks begin in N."""
    block_ids_N: IntArray
    adapter_slots_R: IntArray
    logits_rows_S: IntArray
    """Indices into T."""
    temperature_S: npt.NDArray[np.float32]
    top_k_S: npt.NDArray[np.int32]
    top_p_S: npt.NDArray[np.float32]
    seed_S: npt.NDArray[np.uint64]
    output_index_S: IntArray
    """Position of the sampled token in its request's output; counts for the random numbers."""
    wants_logprobs: bool


@dataclass(frozen=True)
class StepResult:
    """The sampled tokens, one per row of logits. A token of -1 means its logits were not finite."""

    token_ids_S: npt.NDArray[np.int64]
    logprobs_S: npt.NDArray[np.float32] | None


def build_plan(rows: Sequence[Row], block_size: int) -> StepPlan:
    """Flatten a scheduler's rows. Reads requests, changes nothing."""
    counts = np.array([row.num_tokens for row in rows], dtype=np.int64)
    computed = np.array([row.request.num_computed for row in rows], dtype=np.int64)
    query_starts = _starts(counts)
    tables = [row.request.blocks for row in rows]
    block_starts = _starts(np.array([len(table) for table in tables], dtype=np.int64))
    block_ids_N = np.array([block for table in tables for block in table], dtype=np.int64)
    positions_T = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1] - computed, counts)
    block_index_T = np.repeat(block_starts[:-1], counts) + positions_T // block_size
    sampled = [index for index, row in enumerate(rows) if row.samples]
    requests = [rows[index].request for index in sampled]
    sampling = [request.sampling for request in requests]
    return StepPlan(
        token_ids_T=np.array(
            [token for row in rows for token in _tokens(row)],
            dtype=np.int64,
        ),
        positions_T=positions_T,
        slot_mapping_T=block_ids_N[block_index_T] * block_size + positions_T % block_size,
        query_starts=query_starts,
        seq_lens_R=computed + counts,
        block_starts=block_starts,
        block_ids_N=block_ids_N,
        adapter_slots_R=np.array([row.request.slot for row in rows], dtype=np.int64),
        logits_rows_S=query_starts[1:][sampled] - 1,
        temperature_S=np.array([one.temperature for one in sampling], dtype=np.float32),
        top_k_S=np.array([one.top_k for one in sampling], dtype=np.int32),
        top_p_S=np.array([one.top_p for one in sampling], dtype=np.float32),
        seed_S=np.array([one.seed for one in sampling], dtype=np.uint64),
        output_index_S=np.array([request.num_output for request in requests], dtype=np.int64),
        wants_logprobs=any(one.logprobs for one in sampling),
    )


def _tokens(row: Row) -> list[int]:
    start = row.request.num_computed
    return row.request.tokens[start : start + row.num_tokens]


def _starts(counts: IntArray) -> IntArray:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
