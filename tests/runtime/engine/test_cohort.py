"""The cohort's columns say what each member's own progress would."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graft_runtime.engine.batch import Decodes
from graft_runtime.engine.cohort import Cohort
from graft_runtime.engine.kv_cache import RELEASED
from graft_runtime.engine.request import Request
from graft_runtime.ipc.messages import Sampling

SIZE = 4


class CohortMachine(RuleBasedStateMachine):
    """Requests come and go; beside the cohort, each one's progress is counted by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cohort = Cohort(SIZE)
        self.members: list[Request] = []
        self.starts: dict[Request, int] = {}
        self.made = 0
        self.launched: list[tuple[Decodes, list[int], list[list[int]]]] = []
        """Steps with their blocks and tables when they were launched."""

    @rule(
        slots=st.lists(st.integers(0, 3), max_size=3),
        start=st.integers(1, 11),
        more=st.integers(2, 9),
        epoch=st.integers(0, 1),
    )
    def join(self, slots: list[int], start: int, more: int, epoch: int) -> None:
        new = []
        for slot in slots:
            self.made += 1
            request = Request(
                request_id=f"r{self.made}",
                tokens=list(range(start + 1)),
                num_prompt=1,
                sampling=Sampling(max_tokens=more),
                adapter=None,
                arrival=self.made,
                max_length=start + more,
                tenant=f"t{self.made % 3}",
                stop_ids=frozenset({self.made % 2}),
            )
            request.num_computed, request.slot, request.epoch = start, slot, epoch
            request.take([], [100 * self.made + at for at in range(start // SIZE + 1)])
            self.starts[request] = start
            new.append(request)
        self.cohort.join(new)
        self.members += new

    @precondition(lambda self: self.members)
    @rule(at=st.integers(0, 99))
    def leave(self, at: int) -> None:
        request = self.members[at % len(self.members)]
        self.cohort.leave(request)
        self.gone(request)

    @rule()
    def dissolve(self) -> None:
        self.cohort.dissolve()
        for request in self.members.copy():
            self.gone(request)

    @precondition(lambda self: self.members)
    @rule(at=st.integers(0, 99))
    def give_back(self, at: int) -> None:
        """Take blocks out of a table, as a window does."""
        request = self.members[at % len(self.members)]
        if request.release((self.starts[request] - 1) // SIZE):
            self.cohort.retable([request])

    @rule()
    def march(self) -> None:
        complete = self.cohort.complete()
        assert {*complete} == {one for one in self.members if self.length(one) >= one.max_length}
        for request in complete:
            self.cohort.leave(request)
            self.gone(request)
        short = self.cohort.short()
        assert {*short} == {
            one for one in self.members if len(one.blocks) * SIZE <= self.starts[one]
        }
        for request in short:
            request.blocks.append(100 * request.arrival + len(request.blocks))
        if short:
            self.cohort.widen(short)
        self.compare()

    def compare(self) -> None:
        decodes = self.cohort.march()
        members, requests = decodes.members, decodes.requests
        assert {*requests} == {*self.members}
        slots = [request.slot for request in requests]
        assert slots == sorted(slots) == members.slots_D.tolist()
        starts = [self.starts[request] for request in requests]
        assert decodes.starts_D.tolist() == starts
        assert decodes.blocks_D.tolist() == [
            request.blocks[start // SIZE] for request, start in zip(requests, starts, strict=True)
        ]
        for table, request in zip(decodes.tables, requests, strict=True):
            kept = [block for block in request.blocks if block != RELEASED]
            assert table == [kept[0]] * request.num_released + kept
        assert members.ids == [request.request_id for request in requests]
        assert all(
            one is request.tokens for one, request in zip(members.histories, requests, strict=True)
        )
        assert members.epochs == [request.epoch for request in requests]
        assert members.is_usual_D.tolist() == [not request.epoch for request in requests]
        assert members.tenants == Counter(request.tenant for request in requests)
        assert members.stop_ids == {id for request in requests for id in request.stop_ids}
        tables = [table.copy() for table in decodes.tables]
        self.launched.append((decodes, decodes.blocks_D.tolist(), tables))
        for request in requests:
            self.starts[request] += 1

    def length(self, request: Request) -> int:
        return self.starts[request] + 1

    def gone(self, request: Request) -> None:
        assert request.num_computed == self.starts[request]
        assert request.length == self.length(request)
        assert not request.in_cohort
        self.members.remove(request)

    @invariant()
    def counts_its_members(self) -> None:
        assert len(self.cohort) == len(self.members)

    @invariant()
    def changes_nothing_of_a_launched_step(self) -> None:
        for decodes, blocks, tables in self.launched:
            assert decodes.blocks_D.tolist() == blocks
            assert decodes.tables == tables


CohortMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestCohort = CohortMachine.TestCase


def member(number: int) -> Request:
    sampling = Sampling(max_tokens=9)
    request = Request(f"r{number}", [1, 2], 1, sampling, adapter=None, arrival=number)
    request.num_computed = 1
    request.take([], [number, number + 10, number + 20])
    return request


def test_tokens_are_carried_only_between_steps_of_the_same_members() -> None:
    cohort = Cohort(SIZE)
    first, second = member(1), member(2)
    cohort.join([first])
    assert [cohort.march().are_carried for _ in range(2)] == [False, True]
    cohort.join([second])
    assert [cohort.march().are_carried for _ in range(2)] == [False, True]
    cohort.leave(first)
    assert not cohort.march().are_carried
    cohort.dissolve()
    cohort.join([second])
    assert not cohort.march().are_carried
