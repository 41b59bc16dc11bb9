"""Adapters in local mode, from the manifest to the pod that answers."""

from pathlib import Path

from graft_protocol.digest import short_digest
from tests.support.fake_runtime import digest_of
from tests.support.local import adapter_document, running, secret_document, service_document
from tests.support.signing import public_pem, signature


def revision(name: str, uri: str) -> str:
    return f"default/{name}@{short_digest(digest_of(uri))}"


async def test_an_adapter_without_digest_is_resolved_pinned_and_served(tmp_path: Path) -> None:
    uri = "s3://fake/ok-v1"
    async with running(tmp_path, service_document(), adapter_document("shout", uri)) as run:
        await run.until_ready("shout")
        status = run.get("LoraAdapter", "shout")["status"]
        assert status["currentRevision"]["digest"] == digest_of(uri)
        assert status["servedName"] == "shout"
        assert await run.which("shout") == revision("shout", uri)
        assert await run.which("default/shout") == revision("shout", uri)
        await run.until(
            lambda: run.get("InferenceService", "tiny")["status"]["adapters"]["ready"] == 1
        )


async def test_an_update_never_leaves_the_name_unserved(tmp_path: Path) -> None:
    old, new = "s3://fake/ok-v1", "s3://fake/slow-300-v2"
    async with running(tmp_path, service_document(), adapter_document("shout", old)) as run:
        await run.until_ready("shout")
        answers: set[str | None] = set()
        run.write(service_document(), adapter_document("shout", new))
        while await run.which("shout") != revision("shout", new):
            answers.add(await run.which("shout"))
        assert answers <= {revision("shout", old), revision("shout", new)}
        await run.until_ready("shout")
        status = run.get("LoraAdapter", "shout")["status"]
        assert status["currentRevision"]["id"] == revision("shout", new)
        assert "candidateRevision" not in status
        assert run.log_of("tiny-0").count('"up"') == 1


async def test_a_bad_update_leaves_the_old_version_serving(tmp_path: Path) -> None:
    old = "s3://fake/ok-v1"
    async with running(tmp_path, service_document(), adapter_document("shout", old)) as run:
        await run.until_ready("shout")
        run.write(service_document(), adapter_document("shout", "s3://fake/fail-RankTooLarge"))
        await run.until(lambda: run.adapter("shout", "Loaded") == ("False", "RankTooLarge"))
        assert run.adapter("shout") == ("True", "Available")
        assert await run.which("shout") == revision("shout", old)
        run.write(service_document(), adapter_document("shout", old))
        await run.until_ready("shout")
        assert "candidateRevision" not in run.get("LoraAdapter", "shout")["status"]


async def test_one_bad_adapter_does_not_hold_up_the_others(tmp_path: Path) -> None:
    bad = adapter_document("bad", source={"digest": "sha256:" + "0" * 64})
    async with running(tmp_path, service_document(), bad, adapter_document("good")) as run:
        await run.until_ready("good")
        await run.until(lambda: run.adapter("bad") == ("False", "ChecksumMismatch"))
        (failure,) = run.get("LoraAdapter", "bad")["status"]["failures"]
        assert (failure["pods"], failure["example"]) == (1, "tiny-0")


async def test_a_removed_adapter_is_no_longer_served(tmp_path: Path) -> None:
    async with running(tmp_path, service_document()) as run:
        run.write(adapter_document("shout"), file="shout.yaml")
        await run.until_ready("shout")
        (tmp_path / "shout.yaml").unlink()
        await run.until(lambda: not run.get("LoraAdapter", "shout"))
        await run.until_unserved("shout")


async def test_a_suspended_adapter_is_not_served_and_comes_back_as_it_was(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(), adapter_document("shout")) as run:
        await run.until_ready("shout")
        before = run.get("LoraAdapter", "shout")["status"]["currentRevision"]["id"]
        run.write(service_document(), adapter_document("shout", suspend=True))
        await run.until(lambda: run.adapter("shout") == ("False", "Suspended"))
        run.write(service_document(), adapter_document("shout"))
        await run.until_ready("shout")
        assert run.get("LoraAdapter", "shout")["status"]["currentRevision"]["id"] == before


async def test_of_two_claims_on_a_name_one_waits_until_it_is_free(tmp_path: Path) -> None:
    first = adapter_document("a", "s3://fake/ok-a", servedName="story")
    second = adapter_document("b", "s3://fake/ok-b", servedName="story")
    async with running(tmp_path, service_document(), first) as run:
        await run.until_ready("a")
        run.write(service_document(), first, second)
        await run.until(lambda: run.adapter("b") == ("False", "NameConflict"))
        assert await run.which("story") == revision("a", "s3://fake/ok-a")
        run.write(service_document(), second)
        await run.until_ready("b")
        assert await run.which("story") == revision("b", "s3://fake/ok-b")


async def test_an_adapter_waits_for_its_service(tmp_path: Path) -> None:
    async with running(tmp_path, adapter_document("shout")) as run:
        await run.until(lambda: run.adapter("shout") == ("False", "TargetNotFound"))
        run.write(service_document(), adapter_document("shout"))
        await run.until_ready("shout")
        run.write(adapter_document("shout"))
        await run.until(lambda: run.adapter("shout") == ("False", "TargetNotFound"))
        await run.until(lambda: run.pods() == [])


async def test_a_secret_reaches_the_pods_and_its_rotation_restarts_nothing(tmp_path: Path) -> None:
    adapter = adapter_document("shout", source={"credentialsSecretRef": {"name": "keys"}})
    async with running(tmp_path, service_document(), adapter) as run:
        await run.until(lambda: run.adapter("shout") == ("False", "SecretNotFound"))
        run.write(secret_document("keys", token="one"), file="secret.yaml")
        await run.until_ready("shout")
        credential = run.pod_file("tiny-0", "etc/graft/credentials/default.keys.json")
        assert '"token":"one"' in credential.read_text()
        assert credential.stat().st_mode & 0o777 == 0o600
        run.write(secret_document("keys", token="two"), file="secret.yaml")
        await run.until(lambda: '"token":"two"' in credential.read_text())
        assert run.log_of("tiny-0").count('"up"') == 1


async def test_an_endpoint_that_the_service_does_not_allow_is_refused(tmp_path: Path) -> None:
    endpoint = "http://127.0.0.1:9555"
    adapter = adapter_document("shout", source={"credentialsSecretRef": {"name": "keys"}})
    secret = secret_document("keys", endpoint=endpoint, accessKeyId="x")
    async with running(tmp_path, service_document(), adapter, secret) as run:
        await run.until(lambda: run.adapter("shout") == ("False", "SourceForbidden"))
        allowed = service_document(adapters={"allowedEndpoints": [endpoint]})
        run.write(allowed, adapter, secret)
        await run.until(lambda: run.adapter("shout") == ("True", "Available"))


async def test_a_key_that_is_no_longer_trusted_takes_its_adapters_out_of_running_pods(
    tmp_path: Path,
) -> None:
    ours, theirs = (
        service_document(adapters={"trustedKeys": [public_pem(name=name)]})
        for name in ("ours", "theirs")
    )
    uri = "s3://fake/ok-v1"
    digest = digest_of(uri)
    signed = {"digest": digest, "signature": signature(digest)}
    adapters = adapter_document("shout", uri, source=signed), adapter_document("bare", uri)
    async with running(tmp_path, ours, *adapters) as run:
        await run.until_ready("shout")
        await run.until(lambda: run.adapter("bare") == ("False", "SignatureInvalid"))
        assert await run.which("shout") == revision("shout", uri)
        assert await run.which("bare") is None
        run.write(theirs, *adapters)
        await run.until(lambda: run.adapter("shout") == ("False", "SignatureInvalid"))
        await run.until_unserved("shout")
        run.write(ours, *adapters)
        await run.until_ready("shout")
        assert run.log_of("tiny-0").count('"up"') == 1


async def test_an_update_that_is_not_signed_leaves_the_old_version_serving_until_its_key_is_gone(
    tmp_path: Path,
) -> None:
    ours, theirs = (
        service_document(adapters={"trustedKeys": [public_pem(name=name)]})
        for name in ("ours", "theirs")
    )
    old, new = "s3://fake/ok-v1", "s3://fake/ok-v2"
    digests = digest_of(old), digest_of(new)
    first, bare, second = (
        adapter_document("shout", uri, source={"digest": digest, **signed})
        for uri, digest, signed in (
            (old, digests[0], {"signature": signature(digests[0])}),
            (new, digests[1], {}),
            (new, digests[1], {"signature": signature(digests[1])}),
        )
    )
    async with running(tmp_path, ours, first) as run:
        await run.until_ready("shout")
        run.write(ours, bare)
        await run.until(lambda: run.adapter("shout", "Loaded") == ("False", "SignatureInvalid"))
        assert run.adapter("shout") == ("True", "Available")
        assert await run.which("shout") == revision("shout", old)
    async with running(tmp_path) as run:
        await run.until(lambda: run.adapter("shout") == ("True", "Available"))
        assert run.adapter("shout", "Loaded") == ("False", "SignatureInvalid")
        assert await run.which("shout") == revision("shout", old)
        run.write(theirs, bare)
        await run.until(lambda: run.adapter("shout") == ("False", "SignatureInvalid"))
        await run.until_unserved("shout")
        run.write(ours, second)
        await run.until_ready("shout")
        assert await run.which("shout") == revision("shout", new)


async def test_a_claim_is_a_folder_of_this_machine_that_the_pods_see(tmp_path: Path) -> None:
    adapter = adapter_document("shout", source={"uri": "pvc://shared/shout"})
    async with running(tmp_path, service_document(), adapter) as run:
        await run.until(lambda: run.adapter("shout") == ("False", "SourceForbidden"))
        run.write(service_document(adapters={"claims": ["shared"]}), adapter)
        await run.until_ready("shout")
        mounted = run.pod_file("tiny-0", "var/lib/graft/claims/shared")
        assert mounted.resolve().parts[-3:] == ("claims", "default", "shared")


async def test_what_was_resolved_is_remembered_over_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(), adapter_document("shout")) as run:
        await run.until_ready("shout")
        before = run.get("LoraAdapter", "shout")
    async with running(tmp_path) as run:
        assert run.adapter("shout")[0] != "True", "nothing runs yet"
        await run.until_ready("shout")
        after = run.get("LoraAdapter", "shout")
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["status"]["currentRevision"] == before["status"]["currentRevision"]
