"""Run a step plan on the model: the only place where the engine meets tensors.

Shape legend: S rows that get a new token, P tokens of prompts that are scored, K likeliest tokens,
V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.engine.plan import PromptScores, StepPlan, StepResult, TopTokens
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.sampling.logprobs import Scores, rank, score
from graft_runtime.sampling.sampler import Sampled, sample


class Model(Protocol):
    """What the runner needs of a decoder; see `graft_runtime.models.decoder`."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Return float32 logits [S, V]."""


class StepHandle:
    """A launched step. On a CPU it has already run; on a device `result` waits for it."""

    def __init__(self, sampled: Sampled, prompt: tuple[Scores, Tensor] | None) -> None:
        """Keep what the step left on the device.

        Args:
            sampled: Tokens and their log probabilities.
            prompt: Scores and ranks [P] of prompts' tokens.
        """
        self._sampled = sampled
        self._prompt = prompt

    def result(self) -> StepResult:
        """Wait for the step and return its tokens."""
        token_ids_S, logprobs_S, ids_SK, top_SK = self._sampled
        return StepResult(
            token_ids_S.cpu().numpy(),
            None if logprobs_S is None else logprobs_S.cpu().numpy(),
            None if ids_SK is None or top_SK is None else _top(ids_SK, top_SK),
            None if self._prompt is None else _prompt_scores(*self._prompt),
        )


class Runner:
    """Turns plans into tokens."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self._model = model
        self._device = device

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> StepHandle:
        """Start a step: the forward pass, then sampling from its logits."""
        logits = self._model.forward(self._forward_batch(plan))
        num_sampled = len(plan.logits_rows_S)
        sampled = Sampled(torch.empty(0, dtype=torch.int64), None)
        if num_sampled:
            sampled = sample(logits[:num_sampled], plan.sampling)
        if not len(plan.prompt_rows_P):
            return StepHandle(sampled, None)
        targets_P = self._tensor(plan.prompt_targets_P)
        scores = score(logits[num_sampled:], targets_P, plan.num_prompt_top)
        return StepHandle(sampled, (scores, rank(logits[num_sampled:], targets_P)))

    def _forward_batch(self, plan: StepPlan) -> ForwardBatch:
        bounds = zip(plan.block_starts[:-1].tolist(), plan.block_starts[1:].tolist(), strict=True)
        blocks = plan.block_ids_N.tolist()
        logits_rows = np.concatenate((plan.logits_rows_S, plan.prompt_rows_P))
        return ForwardBatch(
            token_ids_T=self._tensor(plan.token_ids_T),
            positions_T=self._tensor(plan.positions_T),
            slot_mapping_T=self._tensor(plan.slot_mapping_T),
            query_starts=plan.query_starts.tolist(),
            seq_lens=plan.seq_lens_R.tolist(),
            block_tables=[blocks[start:end] for start, end in bounds],
            adapter_slots=plan.adapter_slots_R.tolist(),
            rope_variants=plan.rope_variants_R.tolist(),
            logits_rows_S=self._tensor(logits_rows),
        )

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _top(ids_SK: Tensor, logprobs_SK: Tensor) -> TopTokens:
    return TopTokens(ids_SK.cpu().numpy(), logprobs_SK.cpu().numpy())


def _prompt_scores(scores: Scores, ranks_P: Tensor) -> PromptScores:
    return PromptScores(
        scores.logprobs_m.cpu().numpy(),
        ranks_P.cpu().numpy(),
        scores.top_ids_mK.cpu().numpy(),
        scores.top_logprobs_mK.cpu().numpy(),
    )
