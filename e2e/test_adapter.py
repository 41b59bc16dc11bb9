"""An adapter comes, changes and goes while requests run, and nobody else notices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus

from e2e.client import Answer, Client, Load
from e2e.cluster.processes import wait_until
from e2e.stage import Stage
from e2e.voices import pirate, sounds_like

LONG_TOKENS = 600


def test_an_adapter_is_served_beside_the_base_model_without_a_restart(stage: Stage) -> None:
    client = stage.serve()
    before = stage.starts()

    stage.add("shout", "shout")

    assert sounds_like("shout", "".join(client.stream("shout")))
    assert not sounds_like("shout", client.ask("base").text)
    assert client.models() >= {"base", "shout"}
    row = stage.kubectl.run("get", "lora", "shout", "--no-headers").split()
    assert row[:4] == ["shout", "base", "shout", "True"]
    assert stage.starts() == before


def test_a_new_version_takes_over_under_load_without_an_error(stage: Stage) -> None:
    client = stage.serve(replicas=2)
    stage.add("pirate-v1", "pirate")
    before = stage.starts()
    long = _LongStream(client, "pirate")

    with Load(client, "pirate") as load, Load(client, "base", num_users=1) as others:
        _wait_for(load, lambda answer: pirate(answer.text) == "pirate-v1")
        stage.kubectl.apply(stage.bucket.publish("pirate-v2", "pirate"))
        _wait_for(load, lambda answer: pirate(answer.text) == "pirate-v2")
        stage.kubectl.run("wait", "lora/pirate", _loaded(stage, "pirate-v2"), "--timeout=60s")
        # What was asked before this moment may still be answered by the old version.
        later = load.next_answers(20)

    assert load.failed == others.failed == []
    versions = {pirate(answer.text) for answer in load.answers}
    assert versions == {"pirate-v1", "pirate-v2"}
    assert {pirate(answer.text) for answer in later} == {"pirate-v2"}
    assert {pirate(answer.text) for answer in others.answers} == {""}
    assert pirate(long.finished()) == "pirate-v1"
    assert stage.starts() == before


def test_one_that_is_deleted_under_load_ends_in_answers_that_say_so(stage: Stage) -> None:
    client = stage.serve()
    stage.add("pirate-v1", "pirate")
    before = stage.starts()
    long = _LongStream(client, "pirate")

    with Load(client, "pirate") as load, Load(client, "base", num_users=1) as others:
        _wait_for(load, lambda answer: pirate(answer.text) == "pirate-v1")
        stage.kubectl.run("delete", "lora", "pirate", "--timeout=30s")
        _wait_for(load, lambda answer: answer.status == HTTPStatus.NOT_FOUND)
        # What was asked before this moment may still be answered by the adapter.
        later = load.next_answers(20)

    assert others.failed == []
    assert {answer.status for answer in load.answers} == {HTTPStatus.OK, HTTPStatus.NOT_FOUND}
    # Never the base model under the adapter's name.
    assert {pirate(answer.text) for answer in load.answers if answer.is_ok} == {"pirate-v1"}
    assert {answer.status for answer in later} == {HTTPStatus.NOT_FOUND}
    assert pirate(long.finished()) == "pirate-v1"
    assert client.models() == {"base"}
    assert stage.starts() == before


class _LongStream(threading.Thread):
    """A stream that began before something changed."""

    def __init__(self, client: Client, model: str) -> None:
        super().__init__(daemon=True)
        self._pieces: list[str] = []
        self._iterator = client.stream(model, max_tokens=LONG_TOKENS, ignore_eos=True)
        self._pieces.append(next(self._iterator))
        self.start()

    def run(self) -> None:
        self._pieces.extend(self._iterator)

    def finished(self) -> str:
        """Return its text; it must have come to its end."""
        self.join(timeout=60)
        assert not self.is_alive()
        return "".join(self._pieces)


def _wait_for(load: Load, holds: Callable[[Answer], bool]) -> None:
    wait_until(lambda: any(map(holds, load.answers)), "an answer of that kind", seconds=60)


def _loaded(stage: Stage, adapter: str) -> str:
    uri = stage.bucket.uri(f"adapters/{adapter}")
    return f"--for=jsonpath={{.status.currentRevision.uri}}={uri}"
