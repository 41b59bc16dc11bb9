"""The release changes and changes back; what is served does not notice."""

from __future__ import annotations

from e2e.client import Load
from e2e.cluster.processes import wait_until
from e2e.stage import Stage


def test_an_upgrade_and_a_rollback_touch_no_model_pod(stage: Stage) -> None:
    client = stage.serve()
    stage.add("shout", "shout")
    before = stage.starts()
    operators = [_operator(stage)]

    with Load(client, "shout", num_users=1) as load:
        stage.release.upgrade("--set", "verbose=true")
        operators.append(_operator(stage))
        _wait_for_answers(load)
        stage.release.rollback()
        operators.append(_operator(stage))
        _wait_for_answers(load)

    assert load.failed == []
    assert len(set(operators)) == 3
    assert stage.starts() == before
    stage.add("poet", "poet")
    assert client.ask("poet").is_ok
    assert stage.starts() == before


def _operator(stage: Stage) -> str:
    return str(stage.release.operator_pod()["metadata"]["uid"])


def _wait_for_answers(load: Load) -> None:
    count = len(load.answers)
    wait_until(lambda: len(load.answers) > count + 5, "more answers", seconds=60)
