"""Run step plans on the model: the only place where the engine meets tensors.

A step is two pieces of work in a lane: the forward pass, which ends with logits, and the choice of
tokens from them. The tokens stay on the device for the next step, which may be launched before
anybody has seen them.

Shape legend: T tokens, C carried tokens, L rows that reach their last token, S rows that get a new
token, P tokens of prompts that are scored, E rows whose hidden states are pooled, H hidden size, K
likeliest tokens, V vocabulary, N named tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from graft_runtime.engine.lane import Lane, create_lane
from graft_runtime.engine.plan import PromptScores, SamplePlan, StepPlan, StepResult, TopTokens
from graft_runtime.errors import GraftRuntimeError
from graft_runtime.layers.batch import ForwardBatch
from graft_runtime.sampling.counts import CountTable
from graft_runtime.sampling.logprobs import Scores, rank, score
from graft_runtime.sampling.sampler import Sampled, sample


class Model(Protocol):
    """What the runner needs of a decoder; see `graft_runtime.models.decoder`."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Return float32 logits [S, V]."""


@runtime_checkable
class PoolingModel(Model, Protocol):
    """A model that gives hidden states, too."""

    def forward_pooled(
        self, batch: ForwardBatch, bounds: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Return float32 logits [S, V], and sums of hidden states [E, H], float32.

        Args:
            batch: What to compute.
            bounds: First token and the one behind the last, in T, of each of the E sums.
        """


class Forwarded(NamedTuple):
    """What a forward pass leaves on the device."""

    logits: Tensor
    """[L + P, V]."""
    pooled_EH: Tensor | None = None


class StepHandle:
    """A launched step."""

    def __init__(self, runner: Runner, plan: StepPlan, forward: Future[Forwarded]) -> None:
        """Keep what is on its way.

        Args:
            runner: Where it was launched.
            plan: What was launched.
            forward: Its logits, and what else it brings.
        """
        self._runner = runner
        self._plan = plan
        self._forward: Future[Forwarded] | None = forward
        self._sampled: Future[_Landing] | None = None

    def sample(self, plan: SamplePlan) -> None:
        """Launch the choice of tokens. It waits for the logits, this call does not.

        They are large, so nobody else keeps them: they go with the work that reads them, before
        the next step makes its own.
        """
        forward, self._forward = self._forward, None
        if forward is None:
            message = "the tokens of a step were to be chosen twice"
            raise GraftRuntimeError(message)
        self._sampled = self._runner.launch_sampling(self._plan, forward, plan)

    def result(self) -> StepResult:
        """Wait for the step and return its tokens; raises what went wrong in it."""
        if self._sampled is None:
            message = "the result of a step was wanted before its tokens were"
            raise GraftRuntimeError(message)
        return self._sampled.result().wait()

    def abandon(self) -> None:
        """Wait until nothing of the step is under way any more, whatever became of it."""
        for work in (self._forward, self._sampled):
            if work is not None:
                work.exception()


class Runner:
    """Turns plans into tokens."""

    def __init__(self, model: Model, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._lane: Lane = create_lane(device)
        self._counts = CountTable(device)
        self._tokens_S: Tensor | None = None
        """What the latest step sampled; None while it has not. Touched by work in the lane only."""

    def launch(self, plan: StepPlan) -> StepHandle:
        """Start a step's forward pass."""
        batch = self._forward_batch(plan)
        carried_C, from_C = self._tensor(plan.carried_C), self._tensor(plan.carried_from_C)
        bounds = plan.pooled_E
        future = self._lane.submit(lambda: self._run(batch, carried_C, from_C, bounds))
        return StepHandle(self, plan, future)

    def launch_sampling(
        self, step: StepPlan, forward: Future[Forwarded], plan: SamplePlan
    ) -> Future[_Landing]:
        """Start the choice of a step's tokens, and the scoring of its prompts' tokens."""
        return self._lane.submit(lambda: self._sample(step, forward.result(), plan))

    @torch.inference_mode()
    def _run(
        self,
        batch: ForwardBatch,
        carried_C: Tensor,
        from_C: Tensor,
        bounds: Sequence[tuple[int, int]],
    ) -> Forwarded:
        tokens_S, self._tokens_S = self._tokens_S, None
        if len(carried_C):
            if tokens_S is None:
                message = "the step before this one has brought no tokens"
                raise GraftRuntimeError(message)
            # A row without a token has a negative number, and its next row's output is dropped.
            batch.token_ids_T[carried_C] = tokens_S[from_C].clamp(min=0)
        if not bounds:
            return Forwarded(self._model.forward(batch))
        if not isinstance(self._model, PoolingModel):
            message = "the model gives no hidden states"
            raise GraftRuntimeError(message)
        return Forwarded(*self._model.forward_pooled(batch, bounds))

    @torch.inference_mode()
    def _sample(self, step: StepPlan, forwarded: Forwarded, plan: SamplePlan) -> _Landing:
        logits, pooled_EH = forwarded
        num_ending = len(step.logits_rows_L)
        sampled = Sampled(torch.empty(0, dtype=torch.int64, device=logits.device), None)
        if len(plan.rows_S):
            logits_SV = logits[:num_ending]
            if len(plan.rows_S) < num_ending:
                logits_SV = logits_SV[self._tensor(plan.rows_S)]
            sampled = sample(logits_SV, plan.sampling, self._counts)
        self._tokens_S = sampled.token_ids_S
        if not len(step.prompt_rows_P):
            return _Landing(sampled, None, pooled_EH)
        targets_P = self._tensor(step.prompt_targets_P)
        scores = score(logits[num_ending:], targets_P, step.num_prompt_top)
        ranks_P = rank(logits[num_ending:], targets_P)
        return _Landing(sampled, (scores, ranks_P), pooled_EH)

    def _forward_batch(self, plan: StepPlan) -> ForwardBatch:
        logits_rows = np.concatenate((plan.logits_rows_L, plan.prompt_rows_P))
        return ForwardBatch(
            token_ids_T=self._tensor(plan.token_ids_T),
            positions_T=self._tensor(plan.positions_T),
            slot_mapping_T=self._tensor(plan.slot_mapping_T),
            query_starts=plan.query_starts.tolist(),
            seq_lens=plan.seq_lens_R.tolist(),
            block_tables=plan.block_tables,
            adapter_slots=plan.adapter_slots_R.tolist(),
            rope_variants=plan.rope_variants_R.tolist(),
            logits_rows_S=self._tensor(logits_rows),
        )

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class _Landing:
    """A step's tokens on their way to the host."""

    def __init__(
        self, sampled: Sampled, prompt: tuple[Scores, Tensor] | None, pooled_EH: Tensor | None
    ) -> None:
        """Start the copies.

        Args:
            sampled: Tokens and their log probabilities.
            prompt: Scores and ranks [P] of prompts' tokens.
            pooled_EH: Sums of hidden states.
        """
        self._pooled_EH = None if pooled_EH is None else _to_host(pooled_EH)
        token_ids_S, logprobs_S, ids_SK, top_SK, named_N = sampled
        self._tokens_S = _to_host(token_ids_S)
        self._logprobs_S = None if logprobs_S is None else _to_host(logprobs_S)
        self._top: tuple[Tensor, Tensor] | None = None
        if ids_SK is not None and top_SK is not None:
            self._top = _to_host(ids_SK), _to_host(top_SK)
        self._named_N = None if named_N is None else _to_host(named_N)
        self._prompt: list[Tensor] | None = None
        if prompt is not None:
            scores, ranks_P = prompt
            wanted = (scores.logprobs_m, scores.top_ids_mK, scores.top_logprobs_mK, ranks_P)
            self._prompt = [_to_host(one) for one in wanted]
        self._copied: torch.cuda.Event | None = None
        if token_ids_S.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch's own
            self._copied.record()

    def wait(self) -> StepResult:
        """Wait for the copies."""
        if self._copied is not None:
            self._copied.synchronize()
        prompt = None
        if self._prompt is not None:
            logprobs_P, ids_PK, top_PK, ranks_P = (one.numpy() for one in self._prompt)
            prompt = PromptScores(logprobs_P, ranks_P, ids_PK, top_PK)
        return StepResult(
            self._tokens_S.numpy(),
            None if self._logprobs_S is None else self._logprobs_S.numpy(),
            None if self._top is None else TopTokens(*(one.numpy() for one in self._top)),
            prompt,
            None if self._pooled_EH is None else self._pooled_EH.numpy(),
            None if self._named_N is None else self._named_N.numpy(),
        )


def _to_host(tensor: Tensor) -> Tensor:
    """Start to copy a tensor to memory that the device can write to by itself."""
    if not tensor.is_cuda:
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
