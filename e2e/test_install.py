"""A platform team installs Graft, removes it, and installs it again under another name."""

from __future__ import annotations

import re

from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Helm, Kubectl, run_tool
from e2e.release import Release
from e2e.stage import Stage, condition

CRDS = ("inferenceservices.serving.graft.dev", "loraadapters.serving.graft.dev")


def test_the_chart_installs_and_its_notes_tell_the_next_commands(
    release: Release, kubectl: Kubectl
) -> None:
    notes = release.install()

    for crd in CRDS:
        kubectl.run("wait", f"crd/{crd}", "--for=condition=Established", "--timeout=10s")
    # Both namespaces enforce PodSecurity `restricted`; the operator is there nevertheless.
    operator = kubectl.within(release.namespace)
    assert operator.get(release.deployment)["status"]["readyReplicas"] == 1

    see, serve = _commands(notes)
    assert "successfully rolled out" in run_tool(["sh", "-c", see], kubectl.environment)
    serve = serve.replace("BUCKET", "some-bucket")
    assert "base created" in run_tool(["sh", "-c", serve], kubectl.environment)
    # The notes say that it takes a Secret, and that is what the operator misses.
    wait_until(
        lambda: _accepted(kubectl) == ("False", "SecretNotFound"), "the condition", seconds=30
    )


def test_what_is_served_outlives_the_release_and_another_one_takes_it_over(
    stage: Stage, helm: Helm
) -> None:
    kubectl, release = stage.kubectl, stage.release
    client = stage.serve()
    stage.add("shout", "shout")
    before = stage.starts()

    release.uninstall()

    assert "graft" not in helm.run("list", "--namespace", release.namespace, "--short")
    for crd in CRDS:
        assert kubectl.succeeds("get", "crd", crd)
    for thing in ("inferenceservice/base", "loraadapter/shout"):
        assert "finalizers" not in kubectl.get(thing)["metadata"]
    assert client.ask("base").is_ok
    assert client.ask("shout").is_ok

    # Nobody is there to see this: the next release does.
    kubectl.apply(stage.bucket.publish("poet", "poet"))
    again = Release(release.cluster, release.namespace, release.serves, name="again")
    again.install()

    stage.wait_ready("inferenceservice/base", "loraadapter/shout", "loraadapter/poet")
    assert client.ask("poet").is_ok
    assert stage.starts() == before


def test_nothing_is_stuck_when_all_is_removed_without_an_operator(stage: Stage) -> None:
    kubectl = stage.kubectl
    stage.serve()
    stage.add("shout", "shout")
    stage.release.uninstall()

    kubectl.run("delete", "loraadapters,inferenceservices", "--all", "--timeout=30s")

    kinds = "pods,deployments,configmaps,secrets"
    left = ("get", kinds, "-l", "serving.graft.dev/service=base", "--output", "name")
    wait_until(lambda: not kubectl.run(*left).strip(), "the children to go", seconds=60)
    kubectl.run("delete", "namespace", kubectl.namespace, "--timeout=60s")


def _commands(notes: str) -> tuple[str, str]:
    """Return the first two commands that Helm's notes tell."""
    text = notes.partition("NOTES:")[2]
    see = re.search(r"^ {3}(kubectl .*rollout status.*)$", text, re.MULTILINE)
    serve = re.search(
        r"^ {3}(kubectl apply -f - <<'EOF'\n.*?^ {3}EOF)$", text, re.DOTALL | re.MULTILINE
    )
    assert see is not None
    assert serve is not None
    return see[1], re.sub(r"^ {3}", "", serve[1], flags=re.MULTILINE)


def _accepted(kubectl: Kubectl) -> tuple[str, str]:
    found = condition(kubectl.get("inferenceservice/base"), "Accepted")
    return found.get("status", ""), found.get("reason", "")
