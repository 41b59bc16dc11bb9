"""What steps bring to requests, and what is told of that: counters and the next report.

It ends no request: whoever calls it is told which ones have come to their end.

Shape legend: D rows of a batch's decodes.
"""

from __future__ import annotations

from itertools import compress

import numpy as np

from graft_runtime.engine.batch import Batch, Row
from graft_runtime.engine.outputs import (
    NOT_FINITE,
    RowOutput,
    ended,
    out_of_tokens,
    pooled_output,
    token_output,
)
from graft_runtime.engine.report import Counters, StepReport
from graft_runtime.engine.request import Request
from graft_runtime.sampling.batch import IntArray


class Delivery:
    """Hands tokens to requests and collects what there is to say."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.report = StepReport()

    def take_report(self) -> StepReport:
        """Return what there is to say, and begin anew."""
        report, self.report = self.report, StepReport()
        return report

    def decoded(self, batch: Batch, tokens_D: IntArray) -> list[Request]:
        """Give a batch's decodes one more token each; return those that end with it.

        Args:
            batch: The step that is to retire.
            tokens_D: In their order; a negative one says why there is none.
        """
        members, tokens = batch.decodes.members, tokens_D.tolist()
        goes_on_D = members.is_usual_D & (tokens_D >= 0)
        goes_on_D &= batch.decodes.starts_D + 2 < members.limits_D
        if members.stop_ids:
            goes_on_D &= np.array([token not in members.stop_ids for token in tokens])
        for request in batch.ended:
            if request in members.places:
                goes_on_D[members.places[request]] = False
        goes_on = goes_on_D.tolist()
        for history, token in compress(zip(members.histories, tokens, strict=True), goes_on):
            history.append(token)
        self.report.more_ids += compress(members.ids, goes_on)
        self.report.more_tokens += compress(tokens, goes_on)
        self.counters.generation_tokens += sum(goes_on)
        odd = np.flatnonzero(~goes_on_D).tolist()
        return [
            members.requests[at] for at in odd if self._ends_with(members.requests[at], tokens[at])
        ]

    def _ends_with(self, request: Request, token: int) -> bool:
        """Give a request one more token, if it has not ended; tell whether it does with that."""
        if request.has_ended:
            return False  # what was computed for it is dropped
        if token < 0:
            self._say_why_none(request, token)
            return True
        finish = request.append(token)
        self.counters.generation_tokens += 1
        if finish is None and not request.epoch:
            self.report.more_ids.append(request.request_id)
            self.report.more_tokens.append(token)
        else:
            self.report.said.append(token_output(request, RowOutput(token), finish))
        return finish is not None

    def row(self, row: Row, output: RowOutput) -> bool:
        """Give a row's request what a step brought it; tell whether it ends with that."""
        request = row.request
        self._count_prompt(row)
        if request.has_ended:
            return False  # what was computed for it is dropped
        if output.prompt_scores:
            request.prompt_scores += output.prompt_scores
        if output.pooled_H is not None:
            request.pool(row.start, output.pooled_H)
        if not row.samples:
            return False
        if output.token < 0 or request.sampling.pooling is not None:
            self._say_why_none(request, output.token)
            return True
        finish = request.append(output.token)
        self.counters.generation_tokens += 1
        self.report.said.append(token_output(request, output, finish))
        return finish is not None

    def _say_why_none(self, request: Request, token: int) -> None:
        """Tell of the end of a request that gets no token."""
        if token == NOT_FINITE:
            message = "the model's output for this request is not a number"
            self.report.said.append(ended(request.request_id, "error", message))
        elif request.sampling.pooling is not None:
            self.report.said.append(pooled_output(request))
        else:
            self.report.said.append(out_of_tokens(request))

    def _count_prompt(self, row: Row) -> None:
        prompt_left = row.request.num_prompt - row.start
        if prompt_left > 0:
            self.counters.prompt_tokens += min(row.num_tokens, prompt_left)
