"""An adapter's own chat template on its way through the loader, in its real process."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from graft_protocol.reasons import Reason
from graft_runtime.ipc.messages import AdapterPrepared, GuestTemplate, ModelPrepared
from graft_runtime.text.guest_template import MAX_BYTES
from tests.support.loader_process import LoaderProcess, prepared, refusal, run_loader_process

pytestmark = pytest.mark.asyncio(loop_scope="module")

REVISION = "team-a/shout@0123456789ab"
TEMPLATE = "{% for m in messages %}{{ m.content | upper }}{{ mood }}{% endfor %}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loader(base_model: Path) -> AsyncIterator[LoaderProcess]:
    with tempfile.TemporaryDirectory(prefix="graft-") as name:
        async with run_loader_process(Path(name)) as running:
            assert isinstance(await running.prepare_model(base_model.as_uri()), ModelPrepared)
            yield running


def with_template(adapter: Path, folder: Path, template: str | bytes) -> str:
    target = folder / "adapter"
    shutil.copytree(adapter, target)
    data = template.encode() if isinstance(template, str) else template
    (target / "chat_template.jinja").write_bytes(data)
    return target.as_uri()


async def test_it_belongs_to_the_adapter_if_that_is_asked_for(
    loader: LoaderProcess, peft_adapter: Path, tmp_path: Path
) -> None:
    uri = with_template(peft_adapter, tmp_path, TEMPLATE)
    without = prepared(await loader.prepare(REVISION, uri))
    own = prepared(await loader.prepare(REVISION, uri, chat_template=True))
    assert without.template is None
    assert own.template == GuestTemplate(TEMPLATE, ("messages", "mood"))
    assert own.digest != without.digest

    (tmp_path / "adapter" / "chat_template.jinja").write_text("other")
    other = prepared(await loader.prepare(REVISION, uri, chat_template=True))
    assert other.digest not in {own.digest, without.digest}
    again = await loader.prepare(REVISION, uri, chat_template=True, digest=own.digest)
    assert isinstance(again, AdapterPrepared)  # from the cache, whatever lies there now
    assert again.template == own.template


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}", "cannot be parsed"),
        ("{{ 1 / 0 }}{% endif %}", "cannot be parsed"),
        (b"\xff\xfe", "UTF-8"),
        ("x" * (MAX_BYTES + 1), "longer than"),
        ("{{ 9 ** 99999999 }}", "chat_template.jinja"),
    ],
    ids=["open", "closed", "bytes", "long", "endless"],
)
async def test_one_that_cannot_be_used_fails_its_adapter_by_name(
    loader: LoaderProcess,
    peft_adapter: Path,
    tmp_path: Path,
    template: str | bytes,
    told: str,
) -> None:
    uri = with_template(peft_adapter, tmp_path, template)
    reason, message = refusal(await loader.prepare(REVISION, uri, chat_template=True))
    assert reason == Reason.MALFORMED_ARTIFACT
    assert "chat_template.jinja" in message
    assert told in message
    prepared(await loader.prepare(REVISION, uri))  # without it nothing is wrong


async def test_one_that_is_not_there_fails_its_adapter(
    loader: LoaderProcess, peft_adapter: Path
) -> None:
    answer = await loader.prepare(REVISION, peft_adapter.as_uri(), chat_template=True)
    reason, message = refusal(answer)
    assert reason == Reason.MALFORMED_ARTIFACT
    assert message.endswith("there is no chat_template.jinja")


async def test_a_digest_of_the_other_choice_is_no_match_wherever_it_is_found(
    loader: LoaderProcess, peft_adapter: Path, tmp_path: Path
) -> None:
    uri = with_template(peft_adapter, tmp_path, TEMPLATE)
    for known, asked in ((True, False), (False, True)):
        digest = prepared(await loader.prepare(REVISION, uri, chat_template=known)).digest
        answer = await loader.prepare(REVISION, uri, chat_template=asked, digest=digest)
        assert refusal(answer)[0] == Reason.CHECKSUM_MISMATCH
