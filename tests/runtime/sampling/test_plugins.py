"""Logits processors of plugins: found by entry points, checked, and run on their own rows alone."""

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from graft_protocol.config import ServerSettings
from graft_runtime.errors import PluginError
from graft_runtime.ipc.messages import ProcessorCall
from graft_runtime.metrics import Metrics
from graft_runtime.sampling.batch import DeviceCall
from graft_runtime.sampling.interface import DeviceLogitsProcessor, HostLogitsProcessor, Row
from graft_runtime.sampling.plugins import Plugins
from graft_runtime.sampling.sampler import NOT_FINITE, sample
from graft_runtime.server.app import create_app
from tests.support.bigram import BigramEngine, bigram_engine
from tests.support.fake_backend import BASE, FakeBackend, script_of
from tests.support.plugin_folder import install_example
from tests.support.sampling import batch, random_logits
from tests.support.toy_tokenizer import write_toy_tokenizer

VOCAB = 50
EOS = 1


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    broken = {
        "broken": "graft_example_processors:Absent",
        "other": "graft_runtime.errors:ShapeError",
    }
    monkeypatch.syspath_prepend(str(install_example(folder, broken)))
    yield folder
    sys.modules.pop("graft_example_processors", None)


def call(name: str, **arguments: Any) -> ProcessorCall:
    return ProcessorCall(name, arguments)


TOP_A = call("top-a", a=0.5)
WIND_DOWN = call("wind-down", token_id=EOS, after=6, strength=4.0)


def engine(num_blocks: int = 256) -> BigramEngine:
    return bigram_engine(VOCAB, frozenset({EOS}), num_blocks=num_blocks, plugins=Plugins())


def submit(run: BigramEngine, name: str, *calls: ProcessorCall, **sampling: Any) -> None:
    plugins = Plugins()
    checked = tuple(plugins.check(each, VOCAB) for each in calls)
    run.submit(name, [7, 9], processors=checked, **sampling)


def test_an_installed_processor_is_found_and_its_arguments_are_checked() -> None:
    checked = Plugins().check(call("wind-down", token_id=3), VOCAB)
    assert checked == call("wind-down", token_id=3, after=0, strength=1.0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (call("absent"), "no logits processor"),
        (call("broken"), "cannot be loaded"),
        (call("other"), "is none"),
        (call("top-a"), "needs a"),
        (call("top-a", a=2), "needs a"),
        (call("wind-down", token_id=VOCAB), "token_id"),
        (call("wind-down", token_id=1, more=1), "takes"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(asked: ProcessorCall, said: str) -> None:
    with pytest.raises(PluginError, match=said) as caught:
        Plugins().check(asked, VOCAB)
    assert asked.name in str(caught.value)


def test_a_device_processor_changes_its_own_rows_alone() -> None:
    logits = random_logits(4)
    (bound,) = Plugins().bind([TOP_A])
    calls = tuple(
        DeviceCall(row, 0, bound.processor, Row(TOP_A.arguments, (1, 2), 1))  # type: ignore[arg-type] # a device one
        for row in (1, 3)
    )
    plain = batch(4, temperature=1.0, seed=np.arange(4), logprobs=True, num_top=VOCAB, processed=1)
    mixed = sample(logits, replace(plain, device_calls=calls))
    free = sample(logits, plain)
    assert mixed.top_logprobs_SK is not None
    assert free.top_logprobs_SK is not None
    assert torch.equal(mixed.top_logprobs_SK[[0, 2]], free.top_logprobs_SK[[0, 2]])
    for row in (1, 3):
        probs = logits[row].softmax(dim=-1)
        expected = probs.masked_fill(probs < 0.5 * probs.max() ** 2, 0)
        found = mixed.top_logprobs_SK[row].exp().sort().values
        torch.testing.assert_close(found, (expected / expected.sum()).sort().values)


def test_a_host_processor_brings_the_end_near() -> None:
    run = engine()
    for number in range(5):
        submit(run, f"free{number}", seed=number, max_tokens=60, ignore_eos=True)
        submit(run, f"r{number}", WIND_DOWN, seed=number, max_tokens=60)
    run.finish()
    for number in range(5):
        tokens, free = run.tokens(f"r{number}"), run.tokens(f"free{number}")
        assert run.ending(f"r{number}").finish_reason == "stop"
        assert len(tokens) < 20
        same = min(6, len(tokens) - 1)
        assert tokens[:same] == free[:same]


def test_company_and_preemption_change_nothing() -> None:
    roomy, tight, alone = engine(), engine(num_blocks=14), engine()
    names = []
    for number in range(12):
        calls = [(), (TOP_A,), (WIND_DOWN,), (TOP_A, WIND_DOWN)][number % 4]
        names.append(f"r{number}")
        for run in (roomy, tight):
            submit(run, names[-1], *calls, seed=number, max_tokens=50)
    submit(alone, "r7", TOP_A, WIND_DOWN, seed=7, max_tokens=50)
    for run in (roomy, tight, alone):
        run.finish()
    assert tight.engine.stats().preemptions > 0
    assert [tight.tokens(name) for name in names] == [roomy.tokens(name) for name in names]
    assert alone.tokens("r7") == roomy.tokens("r7")


class Failing(HostLogitsProcessor):
    def bias(self, row: Row) -> Mapping[int, float]:
        message = "no luck"
        raise RuntimeError(message)


class Impossible(HostLogitsProcessor):
    def bias(self, row: Row) -> Mapping[int, float]:
        return {-3: 1.0}


class Poison(DeviceLogitsProcessor):
    def apply(self, scores_nV: Any, rows: Sequence[Row]) -> None:
        scores_nV[:, 0] = math.nan


@pytest.mark.parametrize("faulty", [Failing, Impossible, Poison])
def test_a_faulty_processor_ends_its_own_request_alone(faulty: type) -> None:
    point = EntryPoint("faulty", f"{__name__}:{faulty.__name__}", "graft.logits_processors")
    plugins = Plugins([point])
    plugins._loaded["faulty"] = faulty()
    run = bigram_engine(VOCAB, frozenset({EOS}), plugins=plugins)
    run.submit("free", [7], max_tokens=12, ignore_eos=True)
    run.submit("r", [7], processors=(call("faulty"),))
    run.finish()
    assert run.ending("r").finish_reason == "error"
    assert len(run.tokens("free")) == 12
    assert NOT_FINITE not in run.tokens("free")


def test_an_engine_without_the_plugin_refuses_the_request() -> None:
    run = bigram_engine(VOCAB, frozenset({EOS}))
    run.submit("r", [7], processors=(TOP_A,))
    run.finish()
    assert run.ending("r").finish_reason == "error"
    assert "top-a" in (run.ending("r").error or "")


def test_the_interface_and_the_example_are_imported_without_torch(installed: Path) -> None:
    """The server process loads them."""
    script = (
        "import sys; import graft_example_processors; from graft_runtime.sampling.plugins import "
        "Plugins; Plugins().get('top-a'); sys.exit('torch' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(installed)}
    assert (
        subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([{"name": "top-a", "arguments": {"a": 1}}], (call("top-a", a=1.0),)),
        ([{"qualname": "top-a", "kwargs": {"a": 0.5}, "args": []}], (TOP_A,)),
        ([], ()),
        (["top-a"], None),
        (["absent"], None),
        ([{"name": "top-a", "arguments": {"a": 0.5}, "other": 1}], None),
        ([{"name": "top-a", "arguments": [1]}], None),
        ("top-a", None),
        ([{"name": "top-a", "arguments": {"a": 0.5}}] * 9, None),
    ],
)
async def test_requests_name_processors_and_the_server_checks_them(
    tmp_path: Path, value: Any, expected: tuple[ProcessorCall, ...] | None
) -> None:
    backend = FakeBackend(write_toy_tokenizer(tmp_path), script_of([5], "length"))
    app = create_app(backend, ServerSettings(), metrics=Metrics(BASE))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://graft") as client:
        body = {"prompt": "hello", "logits_processors": value}
        answer = await client.post("/v1/completions", json=body)
    if expected is None:
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "logits_processors"
        assert not backend.submitted
    else:
        assert answer.status_code == 200, answer.text
        assert backend.submitted[0].sampling.processors == expected
