"""Admission: bounds by count and by tokens, and how long to stay away."""

from __future__ import annotations

import pytest

from graft_runtime.errors import DrainingError, EngineDiedError, OverloadedError
from graft_runtime.ipc.messages import TokenOutput
from graft_runtime.pod.streams import MAX_RETRY_AFTER_SECONDS, Stream, Streams


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def retry_after(streams: Streams, prompt_chars: int = 0) -> float:
    with pytest.raises(OverloadedError) as refusal:
        streams.check_room(prompt_chars)
    assert refusal.value.retry_after_seconds is not None
    return refusal.value.retry_after_seconds


def test_requests_are_refused_beyond_the_count() -> None:
    streams = Streams(max_running=1, max_waiting=2, max_waiting_tokens=1_000)
    opened = [Stream(f"r{number}", 5) for number in range(3)]
    for stream in opened:
        streams.check_room()
        streams.open(stream)
    with pytest.raises(OverloadedError) as refusal:
        streams.check_room()
    assert refusal.value.limit == 3
    streams.close(opened[0])
    streams.check_room()


def test_requests_are_refused_by_the_length_of_their_text_before_it_is_tokens() -> None:
    streams = Streams(max_running=8, max_waiting=8, max_waiting_tokens=100)
    waiting = Stream("r0", 60)
    streams.open(waiting)
    streams.check_room(prompt_chars=100)
    retry_after(streams, prompt_chars=200)
    streams.deliver(TokenOutput("r0", [1]))
    streams.check_room(prompt_chars=200)


def test_a_request_waits_until_something_of_it_is_computed() -> None:
    clock = Clock()
    streams = Streams(8, 8, 100, clock)
    stream = Stream("r0", 5)
    streams.open(stream)
    assert stream.queue_seconds is None
    clock.now += 2.0
    streams.begin("r0")
    clock.now += 3.0
    streams.begin("r0")
    streams.begin("gone")
    assert stream.queue_seconds == 2.0


def test_a_prompt_longer_than_the_queue_comes_in_when_nothing_waits() -> None:
    streams = Streams(max_running=8, max_waiting=8, max_waiting_tokens=100)
    streams.check_room(prompt_chars=10_000)
    streams.open(Stream("r0", 500))
    retry_after(streams)


def test_the_time_to_stay_away_follows_from_how_fast_requests_end() -> None:
    clock = Clock()
    streams = Streams(1, 0, 1_000, clock)
    for number in range(5):
        stream = Stream(f"r{number}", 5)
        streams.open(stream)
        clock.now += 7.0
        streams.close(stream)
    streams.open(Stream("last", 5))
    assert 5 <= retry_after(streams) <= 7
    clock.now += 10_000
    assert retry_after(streams) == MAX_RETRY_AFTER_SECONDS


def test_a_dead_engine_ends_only_what_it_had() -> None:
    streams = Streams(4, 4, 1_000)
    held, sent = Stream("held", 5), Stream("sent", 5)
    for stream in (held, sent):
        streams.open(stream)
    streams.send(sent, "ns/a@0123456789ab")
    assert streams.active == {"ns/a@0123456789ab": 1}
    streams.fail_all(EngineDiedError("gone"))
    assert (held.queue.qsize(), sent.queue.qsize()) == (0, 1)
    for stream in (held, sent):
        streams.close(stream)
    assert streams.active == {}


def test_a_version_whose_time_is_over_ends_only_its_own_requests() -> None:
    streams = Streams(4, 4, 1_000)
    held, old, new = Stream("held", 5), Stream("old", 5), Stream("new", 5)
    for stream in (held, old, new):
        streams.open(stream)
    streams.send(old, "ns/a@000000000001")
    streams.send(new, "ns/a@000000000002")
    streams.fail_revision("ns/a@000000000001", DrainingError("removed"))
    assert [stream.queue.qsize() for stream in (held, old, new)] == [0, 1, 0]
