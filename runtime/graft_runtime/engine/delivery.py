"""What steps bring to requests, and what is told of that: counters and the next report.

It ends no request: whoever calls it is told which ones have come to their end.
"""

from __future__ import annotations

from collections.abc import Sequence

from graft_runtime.engine.batch import Row
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


class Delivery:
    """Hands tokens to requests and collects what there is to say."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.report = StepReport()

    def take_report(self) -> StepReport:
        """Return what there is to say, and begin anew."""
        report, self.report = self.report, StepReport()
        return report

    def decoded(self, requests: Sequence[Request], tokens: Sequence[int]) -> list[Request]:
        """Give requests one more token each; return those that end with it.

        Args:
            requests: Those of a batch's decodes.
            tokens: In their order; a negative one says why there is none.
        """
        report = self.report
        ids, more, ending = report.more_ids, report.more_tokens, list[Request]()
        generated = 0
        for request, token in zip(requests, tokens, strict=True):
            if request.has_ended:
                continue  # what was computed for it is dropped
            if token < 0:
                self._say_why_none(request, token)
                ending.append(request)
                continue
            finish = request.append(token)
            generated += 1
            if finish is None and not request.epoch:
                ids.append(request.request_id)
                more.append(token)
                continue
            report.said.append(token_output(request, RowOutput(token), finish))
            if finish is not None:
                ending.append(request)
        self.counters.generation_tokens += generated
        return ending

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
