"""Whose key opens an adapter uses it; to everybody else it does not exist."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from http import HTTPStatus

from e2e.client import Answer
from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl
from e2e.stage import Stage, condition, edited
from e2e.voices import sounds_like

ACCESS = {"access": {"apiKeySecretRefs": [{"name": "callers"}]}}


def test_an_adapter_answers_those_with_a_key_and_is_absent_for_all_others(stage: Stage) -> None:
    anybody = stage.serve()
    stage.add("cheerful", "cheerful")
    key, other = secrets.token_hex(24), secrets.token_hex(24)
    caller, stranger = anybody.with_key(key), anybody.with_key(other)
    before = stage.starts()

    stage.kubectl.apply(edited(stage.bucket.publish("shout", "shout"), spec=ACCESS))
    # Nobody could be told from anybody as long as there are no keys: it stays closed.
    _wait_for(stage.kubectl, "SecretNotFound")
    assert caller.ask("shout").status == HTTPStatus.NOT_FOUND
    _put_keys(stage.kubectl, {"ci": key})
    stage.wait_ready("lora/shout")

    wait_until(lambda: caller.ask("shout").is_ok, "an answer", seconds=30)
    assert sounds_like("shout", caller.ask("shout").text)
    for client in (anybody, stranger):
        assert client.ask("cheerful").is_ok
        assert _without_name(client.ask("shout"), "shout") == _without_name(
            client.ask("absent"), "absent"
        )
        assert client.ask("shout").status == HTTPStatus.NOT_FOUND
        assert _own(client.models()) == {"base", "cheerful"}
    assert _own(caller.models()) == {"base", "cheerful", "shout"}
    assert stage.starts() == before


def test_a_key_is_renewed_through_its_secret_without_a_restart(stage: Stage) -> None:
    anybody, kubectl = stage.serve(), stage.kubectl
    old, new = secrets.token_hex(24), secrets.token_hex(24)
    before_it, after_it = anybody.with_key(old), anybody.with_key(new)
    # For a while both open it, so that callers can change over. The new one never enters the
    # cluster: its hash suffices.
    hashed = f"sha256:{hashlib.sha256(new.encode()).hexdigest()}"
    _put_keys(kubectl, {"ci": old, "next": hashed})
    kubectl.apply(edited(stage.bucket.publish("shout", "shout"), spec=ACCESS))
    stage.wait_ready("lora/shout")
    for client in (before_it, after_it):
        assert sounds_like("shout", client.ask("shout").text)
    before, generation = stage.starts(), _generation(kubectl)

    _put_keys(kubectl, {"next": hashed})
    wait_until(lambda: not before_it.ask("shout").is_ok, "the old key to be void", seconds=60)

    assert before_it.ask("shout").status == HTTPStatus.NOT_FOUND
    assert "shout" not in before_it.models()
    assert sounds_like("shout", after_it.ask("shout").text)
    assert "shout" in after_it.models()
    # Pods have hashes only, wherever one looks.
    pods = kubectl.run("get", "configmaps,pods", "--output", "json")
    assert old not in pods
    assert new not in pods
    assert stage.starts() == before
    assert _generation(kubectl) == generation


def _put_keys(kubectl: Kubectl, keys: Mapping[str, str]) -> None:
    """Have the Secret `callers` hold these keys and no others."""
    flags = [f"--from-literal={name}={key}" for name, key in keys.items()]
    command = ("create", "secret", "generic", "callers", *flags, "--dry-run=client")
    kubectl.apply(kubectl.run(*command, "--output", "yaml"))


def _own(models: set[str]) -> set[str]:
    """Leave the second name out that an adapter has: its namespace and its name."""
    return {name for name in models if "/" not in name}


def _without_name(answer: Answer, name: str) -> tuple[int, str]:
    return answer.status, answer.text.replace(name, "...")


def _generation(kubectl: Kubectl) -> int:
    return int(kubectl.get("deployment/base")["metadata"]["generation"])


def _wait_for(kubectl: Kubectl, reason: str) -> None:
    wait_until(
        lambda: condition(kubectl.get("lora/shout"), "Accepted").get("reason") == reason,
        f"Accepted=False {reason}",
        seconds=60,
    )
