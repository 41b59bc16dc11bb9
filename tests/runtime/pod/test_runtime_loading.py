"""Adapters by API on a whole pod: loaded, replaced, merged, unloaded, and never in anyone's way."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer

from graft_protocol.reasons import AdapterState
from graft_protocol.revisions import RUNTIME_NAMESPACE
from tests.support.peft_adapters import load_with_adapters, make_adapter
from tests.support.pod import RunningPod, entry_for, run_pod

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = Path(__file__).parents[3] / "examples/models/tiny"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    made = {
        name: make_adapter(TINY, folder / name, rank=rank, seed=seed)
        for seed, (name, rank) in enumerate({"a": 4, "b": 20, "c": 8}.items(), start=1)
    }
    made["broken"] = folder / "broken"
    shutil.copytree(made["a"], made["broken"])
    (made["broken"] / "adapter_model.safetensors").write_bytes(b"nothing of use")
    return made


@pytest.fixture
async def pod(adapters: dict[str, Path]) -> AsyncIterator[RunningPod]:
    allowed = {
        "allowRuntimeLoading": True,
        "allowedUris": [adapters["a"].parent.resolve().as_uri()],
        "maxRuntimeAdapters": 2,
    }
    async with run_pod(TINY, adapters=allowed) as running:
        yield running


async def load(pod: RunningPod, name: str, folder: Path, **more: Any) -> httpx.Response:
    body = {"lora_name": name, "lora_path": folder.resolve().as_uri()} | more
    return await pod.client.post(f"{pod.url}/v1/load_lora_adapter", json=body)


async def unload(pod: RunningPod, name: str) -> httpx.Response:
    url = f"{pod.url}/v1/unload_lora_adapter"
    return await pod.client.post(url, json={"lora_name": name})


async def generate(pod: RunningPod, parameters: Mapping[str, Any]) -> httpx.Response:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 16, **parameters}}
    return await pod.client.post(f"{pod.url}/generate", json=body)


async def said(pod: RunningPod, parameters: Mapping[str, Any]) -> str:
    answer = await generate(pod, parameters)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["generated_text"]
    return text


async def models(pod: RunningPod) -> dict[str, str | None]:
    answer = await pod.client.get(f"{pod.url}/v1/models")
    return {one["id"]: one["parent"] for one in answer.json()["data"]}


async def test_an_adapter_by_api_lives_beside_declared_ones(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    declared = entry_for("declared", adapters["a"])
    pod.desire([declared])
    await pod.until_available(declared)
    answer = await load(pod, "mine", adapters["b"])
    assert (answer.status_code, answer.text) == (
        200,
        "Success: LoRA adapter 'mine' added successfully.",
    )
    assert await models(pod) == {"base": None, "declared": "base", "mine": "base"}
    words = {model: await pod.complete(PROMPT, model=model) for model in await models(pod)}
    assert len(set(words.values())) == 3
    mine = [one for one in await pod.states() if one.startswith(f"{RUNTIME_NAMESPACE}/mine@")]
    assert len(mine) == 1

    pod.desire([])  # a sync removes what was declared, and nothing else
    await pod.until(lambda: models(pod), lambda found: "declared" not in found)
    assert await pod.complete(PROMPT, model="mine") == words["mine"]
    again = await load(pod, "mine", adapters["b"])
    assert again.status_code == 400
    assert again.json()["type"] == "InvalidUserInput"
    assert "already been loaded" in again.json()["message"]
    replaced = await load(pod, "mine", adapters["c"], load_inplace=True)
    assert replaced.status_code == 200, replaced.text
    assert await pod.complete(PROMPT, model="mine") not in set(words.values())

    assert (await unload(pod, "mine")).status_code == 200
    await pod.until(lambda: models(pod), lambda found: found == {"base": None})
    gone = await unload(pod, "mine")
    assert gone.status_code == 404
    assert gone.json()["error"]["message"] == gone.json()["message"]


async def test_what_cannot_be_loaded_is_refused_and_leaves_the_old_one(
    pod: RunningPod, adapters: dict[str, Path], tmp_path: Path
) -> None:
    elsewhere = await load(pod, "x", tmp_path)
    assert elsewhere.status_code == 400
    assert elsewhere.json()["param"] == "lora_path"
    missing = await load(pod, "x", adapters["a"].parent / "missing")
    assert missing.status_code == 404, missing.text
    broken = await load(pod, "x", adapters["broken"])
    assert broken.status_code == 400
    assert broken.json()["message"].startswith("MalformedArtifact: ")
    assert await pod.states() == {}
    assert (await load(pod, "x", adapters["a"])).status_code == 200
    before = await pod.complete(PROMPT, model="x")
    assert (await load(pod, "x", adapters["broken"], load_inplace=True)).status_code == 400
    assert await pod.complete(PROMPT, model="x") == before
    for name in ("base", "", "x" * 200):
        assert (await load(pod, name, adapters["b"])).status_code == 400
    assert (await load(pod, "y", adapters["b"])).status_code == 200
    full = await load(pod, "z", adapters["c"])
    assert full.status_code == 429, full.text


async def test_a_declared_name_is_never_shadowed(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    assert (await load(pod, "a", adapters["b"])).status_code == 200
    by_api = await pod.complete(PROMPT, model="a")
    declared = entry_for("a", adapters["a"])
    pod.desire([declared])
    await pod.until(pod.states, lambda found: found == {declared.revision: AdapterState.AVAILABLE})
    assert await pod.complete(PROMPT, model="a") != by_api
    refused = await load(pod, "a", adapters["b"], load_inplace=True)
    assert refused.status_code == 400
    assert "declared" in refused.json()["message"]


async def test_a_request_may_name_a_source(pod: RunningPod, adapters: dict[str, Path]) -> None:
    sources = {
        name: {"adapter_id": str(adapters[name].resolve()), "adapter_source": "local"}
        for name in "abc"
    }
    base = await said(pod, {})
    words = await asyncio.gather(*(said(pod, sources["a"]) for _ in range(8)))
    assert len(set(words)) == 1
    assert words[0] != base
    # The third takes the place of the one that was unused for longest.
    others = [await said(pod, sources[name]) for name in "bc"]
    assert len({base, words[0], *others}) == 4
    await pod.until(pod.states, lambda found: len(found) == 2)
    assert await said(pod, sources["a"]) == words[0]
    missing = {"adapter_id": f"{adapters['a'].resolve()}-not", "adapter_source": "local"}
    assert (await generate(pod, missing)).status_code == 404
    broken = {"adapter_id": str(adapters["broken"].resolve()), "adapter_source": "local"}
    failed = await generate(pod, broken)
    assert (failed.status_code, failed.json()["error_type"]) == (424, "generation")
    assert (await generate(pod, {"adapter_id": "x", "adapter_source": "pbase"})).status_code == 422


@torch.inference_mode()
def peft_says(adapters: Mapping[str, Path], weight: float) -> str:
    """Return what the base says with both adapters added at this weight, and nothing in between."""
    model = load_with_adapters(TINY, {name: adapters[name] for name in "ab"})
    model.add_weighted_adapter(["a", "b"], [weight] * 2, "sum", combination_type="cat")
    model.set_adapter("sum")
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    tokens = list(prompt)
    for _ in range(16):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    text: str = tokenizer.decode(tokens[len(prompt) :])
    return text


async def test_merged_adapters_are_the_weighted_sum(
    pod: RunningPod, adapters: dict[str, Path]
) -> None:
    entries = {name: entry_for(name, adapters[name]) for name in "abc"}
    pod.desire(entries.values())
    await pod.until_available(*entries.values())
    words = {name: await said(pod, {"adapter_id": name}) for name in "abc"}

    def merged(ids: list[str], weights: list[float]) -> dict[str, Any]:
        return {"merged_adapters": {"ids": ids, "weights": weights, "merge_strategy": "linear"}}

    base = await said(pod, {})
    assert await said(pod, merged(["a", "b"], [1.0, 0.0])) == words["a"]
    assert await said(pod, merged(["b", "a"], [0.0, 1.0])) == words["a"]
    assert await said(pod, merged(["a", "a"], [0.5, 0.5])) == words["a"]
    assert await said(pod, merged(["b", "b"], [2.0, -2.0])) == base
    both = await said(pod, merged(["a", "b"], [1.0, 1.0]))
    assert both == peft_says(adapters, 1.0)
    assert both not in {base, *words.values()}
    mean = {"merged_adapters": {"ids": ["a", "b"]}}
    assert await said(pod, mean) == peft_says(adapters, 0.5)
    assert set(await models(pod)) == {"base", *"abc"}, "sums have no names of their own"
    wrong: tuple[dict[str, Any], ...] = (
        {"ids": ["a", "b"], "merge_strategy": "ties"},
        {"ids": ["a", "b"], "weights": [1.0]},
        {"ids": []},
    )
    for fields in wrong:
        assert (await generate(pod, {"merged_adapters": fields})).status_code == 422
    unknown = await generate(pod, {"merged_adapters": {"ids": ["a", "nobody"]}})
    assert unknown.status_code == 404
    pod.desire([entries["c"]])  # a sum goes with its parts
    await pod.until(
        pod.states, lambda found: found == {entries["c"].revision: AdapterState.AVAILABLE}
    )
    await pod.until(
        lambda: _pages_taken(pod),
        lambda taken: taken <= 1,  # those of the one that is left
    )


async def _pages_taken(pod: RunningPod) -> int:
    capacity = (await pod.status()).capacity
    return capacity.device_pages - capacity.device_pages_free


async def test_without_leave_there_are_no_such_routes(adapters: dict[str, Path]) -> None:
    async with run_pod(TINY) as pod:
        assert (await load(pod, "x", adapters["a"])).status_code == 404
        for parameters in (
            {"adapter_id": "x", "adapter_source": "hub"},
            {"merged_adapters": {"ids": ["x"]}},
        ):
            answer = await generate(pod, parameters)
            assert answer.status_code == 422
            assert "allowRuntimeLoading" in answer.json()["error"]
