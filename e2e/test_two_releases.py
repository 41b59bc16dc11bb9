"""Two releases in one cluster, each for its own namespaces: neither knows of the other."""

from __future__ import annotations

from e2e.client import Load
from e2e.conftest import MakeNamespace
from e2e.release import Release
from e2e.stage import Stage
from e2e.voices import pirate, sounds_like


def test_two_releases_serve_side_by_side_and_one_leaves(
    stage: Stage, make_namespace: MakeNamespace
) -> None:
    other = _second_release(stage, make_namespace)
    client, others_client = stage.serve(), other.serve()
    # The same names on both sides, and different bytes.
    stage.add("pirate-v1", "voice")
    other.add("shout", "voice")
    before, others_before = stage.starts(), other.starts()

    assert pirate(client.ask("voice").text) == "pirate-v1"
    assert sounds_like("shout", others_client.ask("voice").text)
    for mine, theirs in ((stage, other), (other, stage)):
        operator = f"system:serviceaccount:{mine.release.namespace}:graft"
        for right in (("get", "secrets"), ("patch", "deployments.apps"), ("list", "loraadapters")):
            asked = ("auth", "can-i", *right, "--as", operator)
            assert mine.kubectl.succeeds(*asked)
            assert not theirs.kubectl.succeeds(*asked)

    with Load(client, "voice", num_users=1) as users:
        other.release.uninstall()
        stage.kubectl.apply(stage.bucket.publish("pirate-v2", "voice"))
        stage.add("poet", "poet")
        users.next_answers(5)

    assert users.failed == []
    assert client.ask("poet").is_ok
    assert pirate(client.ask("voice").text) == "pirate-v2"
    # Whose operator has left goes on as it was.
    assert sounds_like("shout", others_client.ask("voice").text)
    assert stage.starts() == before
    assert other.starts() == others_before


def _second_release(stage: Stage, make_namespace: MakeNamespace) -> Stage:
    """Install the chart once more, under the same name, for another namespace."""
    kubectl = stage.kubectl.within(make_namespace("other"))
    release = Release(stage.release.cluster, make_namespace("operators"), (kubectl.namespace,))
    # The definitions are there, and stay the first release's.
    release.install("--set", "crds.adopt=false")
    return Stage(release, kubectl, stage.bucket)
