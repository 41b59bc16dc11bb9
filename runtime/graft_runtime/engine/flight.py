"""A launched step, from its launch until it retires; and what the engine asks of a runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from graft_runtime.engine.batch import Batch
from graft_runtime.engine.outputs import StepOutput, step_output
from graft_runtime.engine.plan import SamplePlan, StepPlan, StepResult
from graft_runtime.errors import GraftRuntimeError


class Handle(Protocol):
    """A launched step; see `graft_runtime.engine.runner.StepHandle`."""

    def sample(self, plan: SamplePlan) -> None:
        """Start the choice of its tokens."""

    def result(self) -> StepResult:
        """Wait for the step and return its tokens."""

    def abandon(self) -> None:
        """Wait until nothing of it is under way any more."""


class Launcher(Protocol):
    """What runs plans; see `graft_runtime.engine.runner.Runner`."""

    def launch(self, plan: StepPlan) -> Handle:
        """Start a step's forward pass."""


@dataclass(eq=False)
class Flight:
    """One launched step."""

    batch: Batch
    handle: Handle | None = None
    """None when it could not even be launched."""
    plan: SamplePlan | None = None
    """None until its sampling is launched."""
    error: Exception | None = None
    """What went wrong in the launch."""

    def output(self) -> StepOutput:
        """Wait for the step; return what it gave its rows, or raise what went wrong in it."""
        if self.error is not None:
            raise self.error
        if self.handle is None or self.plan is None:
            message = "a step was to retire before it was launched"
            raise GraftRuntimeError(message)
        return step_output(self.batch, self.plan.rows_S, self.handle.result())

    def abandon(self) -> None:
        """Wait until nothing of the step is under way any more."""
        if self.handle is not None:
            self.handle.abandon()
