"""Manifests in local mode: what is refused, what stays, and what a person is told."""

from pathlib import Path

from tests.support.local import adapter_document, running, secret_document, service_document


async def test_a_refused_change_leaves_the_last_good_version(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(), adapter_document("shout")) as run:
        await run.until_ready("shout")
        broken = adapter_document("shout")
        broken["spec"]["source"]["url"] = broken["spec"]["source"].pop("uri")
        run.write(service_document(), broken)
        await run.until(lambda: run.cluster.problems)
        (problem,) = run.cluster.problems
        assert problem.where == "all.yaml, document 2 (LoraAdapter default/shout)"
        assert "spec.source.url: unknown field; did you mean 'uri'?" in problem.message
        assert "last good version stays" in problem.message
        assert run.adapter("shout") == ("True", "Available")
        run.write(service_document(), adapter_document("shout"))
        await run.until(lambda: run.cluster.problems == ())


async def test_a_document_without_a_name_removes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(), adapter_document("shout")) as run:
        await run.until_ready("shout")
        nameless = adapter_document("shout")
        nameless["metdata"] = nameless.pop("metadata")
        run.write(service_document(), nameless)
        await run.until(lambda: run.cluster.problems)
        assert run.get("LoraAdapter", "shout")


async def test_a_file_that_is_no_yaml_removes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(), adapter_document("shout")) as run:
        await run.until_ready("shout")
        (tmp_path / "all.yaml").write_text("kind: [")
        await run.until(lambda: run.cluster.problems)
        assert run.get("LoraAdapter", "shout")
        assert await run.which("shout") is not None


async def test_kinds_that_local_mode_does_not_know_are_named(tmp_path: Path) -> None:
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    async with running(tmp_path, other, service_document()) as run:
        await run.until_ready()
        (problem,) = run.cluster.problems
        assert "ConfigMap" in problem.message


async def test_the_same_object_in_two_files_counts_once_and_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, service_document()) as run:
        run.write(adapter_document("shout", "s3://fake/ok-a"), file="a.yaml")
        run.write(adapter_document("shout", "s3://fake/ok-b"), file="b.yaml")
        await run.until(lambda: run.cluster.problems)
        await run.until_ready("shout")
        assert "a.yaml" in run.cluster.problems[0].message
        (tmp_path / "a.yaml").unlink()
        await run.until(lambda: run.cluster.problems == ())
        uri = run.get("LoraAdapter", "shout")["spec"]["source"]["uri"]
        assert uri == "s3://fake/ok-b"


async def test_the_service_of_an_adapter_cannot_be_changed_in_place(tmp_path: Path) -> None:
    async with running(tmp_path, service_document(), adapter_document("shout")) as run:
        await run.until_ready("shout")
        moved = adapter_document("shout")
        moved["spec"]["inferenceServiceRef"]["name"] = "other"
        run.write(service_document(), moved)
        await run.until(lambda: run.cluster.problems)
        assert "immutable" in run.cluster.problems[0].message
        assert run.adapter("shout") == ("True", "Available")


async def test_a_secrets_content_is_nowhere_in_the_state_that_is_left_behind(
    tmp_path: Path,
) -> None:
    secret = secret_document("keys", token="hush-hush")
    adapter = adapter_document("shout", source={"credentialsSecretRef": {"name": "keys"}})
    async with running(tmp_path, service_document(), secret, adapter) as run:
        await run.until_ready("shout")
        run.cluster.save()
        state = (tmp_path / ".graft/state.json").read_text()
        assert "hush-hush" not in state
        assert "aHVzaC1odXNo" not in state
        assert (tmp_path / ".graft/.gitignore").read_text() == "*\n"
