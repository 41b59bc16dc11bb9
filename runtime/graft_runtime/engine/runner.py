"""Run a step plan on the model: the only place where the engine meets tensors.

Shape legend: S rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.engine.plan import StepPlan, StepResult
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.sampling.sampler import SamplingBatch, sample


class Model(Protocol):
    """What the runner needs of a decoder; see `graft_runtime.models.decoder`."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Return float32 logits [S, V]."""


class StepHandle:
    """A launched step. On a CPU it has already run; on a device `result` waits for it."""

    def __init__(self, token_ids_S: Tensor, logprobs_S: Tensor | None) -> None:
        self._token_ids_S = token_ids_S
        self._logprobs_S = logprobs_S

    def result(self) -> StepResult:
        """Wait for the step and return its tokens."""
        logprobs = None if self._logprobs_S is None else self._logprobs_S.cpu().numpy()
        return StepResult(self._token_ids_S.cpu().numpy(), logprobs)


class Runner:
    """Turns plans into tokens."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self._model = model
        self._device = device

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StepHandle:
        """Start a step: the forward pass, then sampling from its logits."""
        logits_SV = self._model.forward(self._forward_batch(plan))
        if not len(plan.logits_rows_S):
            return StepHandle(torch.empty(0, dtype=torch.int64), None)
        sampled = sample(logits_SV, _sampling_batch(plan))
        return StepHandle(sampled.token_ids_S, sampled.logprobs_S)

    def _forward_batch(self, plan: StepPlan) -> ForwardBatch:
        bounds = zip(plan.block_starts[:-1].tolist(), plan.block_starts[1:].tolist(), strict=True)
        blocks = plan.block_ids_N.tolist()
        return ForwardBatch(
            token_ids_T=self._tensor(plan.token_ids_T),
            positions_T=self._tensor(plan.positions_T),
            slot_mapping_T=self._tensor(plan.slot_mapping_T),
            query_starts=plan.query_starts.tolist(),
            seq_lens=plan.seq_lens_R.tolist(),
            block_tables=[blocks[start:end] for start, end in bounds],
            adapter_slots=plan.adapter_slots_R.tolist(),
            logits_rows_S=self._tensor(plan.logits_rows_S),
        )

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _sampling_batch(plan: StepPlan) -> SamplingBatch:
    return SamplingBatch(
        temperature_S=plan.temperature_S,
        top_k_S=plan.top_k_S,
        top_p_S=plan.top_p_S,
        seed_S=plan.seed_S,
        position_S=plan.output_index_S,
        logprobs=plan.wants_logprobs,
    )
