"""Text to tokens and back in TGI's and vLLM's forms, and what platforms ask of any server."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from graft_protocol import __version__
from graft_protocol.status import LoadReport
from graft_runtime.text.tokenizer import Tokenizer
from tests.support.fake_backend import BASE, REPORT, FakeBackend
from tests.support.toy_tokenizer import CHAT_TEMPLATE, TURN

HELLO = [{"role": "user", "content": "hello"}]


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_inputs_are_cut_as_tgi_cuts_them(
    client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    text = "hello wörld 🦊"
    pieces = await post(client, "/tokenize", {"inputs": text})
    assert [each["id"] for each in pieces] == tokenizer.encode(text, add_special_tokens=True)
    assert pieces[0] | {"id": 0} == {"id": 0, "text": "", "start": 0, "stop": 0}
    data = text.encode()
    assert all(data[each["start"] : each["stop"]].decode() == each["text"] for each in pieces)
    cut = await post(client, "/tokenize", {"inputs": text, "parameters": {"truncate": 2}})
    assert cut == pieces[-2:]


async def test_a_prompt_is_counted_as_vllm_counts_it(
    client: httpx.AsyncClient, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode("hello fox", add_special_tokens=True)
    body = await post(client, "/tokenize", {"model": BASE, "prompt": "hello fox"})
    assert body == {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}
    plain = {"prompt": "hello fox", "add_special_tokens": False, "return_token_strs": True}
    body = await post(client, "/tokenize", plain)
    assert body["tokens"] == ids[1:]
    assert "".join(body["token_strs"]) == "hello\u0120fox"


async def test_a_chat_is_counted_with_its_template(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = await post(client, "/tokenize", {"messages": HELLO})
    await post(client, "/v1/chat/completions", {"messages": HELLO})
    assert body["tokens"] == backend.submitted[0].token_ids
    shorter = await post(client, "/tokenize", {"messages": HELLO, "add_generation_prompt": False})
    assert shorter["count"] < body["count"]
    tgi = await post(client, "/chat_tokenize", {"messages": HELLO})
    assert tgi["templated_text"] == f"<s>{TURN}user\nhello</s>{TURN}assistant\n"
    assert [each["id"] for each in tgi["tokenize_response"]] == body["tokens"]
    last = tgi["tokenize_response"][-1]
    assert last["stop"] == len(tgi["templated_text"])


async def test_detokenizing_undoes_tokenizing(client: httpx.AsyncClient) -> None:
    tokens = (await post(client, "/tokenize", {"prompt": "hello wörld 🦊"}))["tokens"]
    assert await post(client, "/detokenize", {"tokens": tokens}) == {"prompt": "<s>hello wörld 🦊"}
    assert await post(client, "/detokenize", {"tokens": []}) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokenize", {"inputs": ""}, 422),
        ("/tokenize", {"inputs": "x" * 100_000}, 422),
        ("/tokenize", {"prompt": "x" * 100_000}, 400),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, 400),
        ("/tokenize", {}, 400),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, 404),
        ("/tokenize", {"messages": HELLO, "chat_template": "x"}, 400),
        ("/detokenize", {"tokens": [10**6]}, 400),
        ("/detokenize", {"tokens": [-1]}, 400),
        ("/detokenize", {"tokens": "a"}, 400),
        ("/detokenize", {}, 400),
        ("/chat_tokenize", {"messages": []}, 422),
        ("/invocations", {}, 400),
        ("/invocations", {"inputs": ""}, 422),
        ("/invocations", {"prompt": ""}, 400),
    ],
)
async def test_a_refusal_has_the_form_of_its_family(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int
) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert isinstance(error, str if status == 422 else dict)


async def test_the_tokenizer_describes_itself(client: httpx.AsyncClient) -> None:
    info = (await client.get("/tokenizer_info")).json()
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    assert info["chat_template"] == CHAT_TEMPLATE
    assert info["tokenizer_class"] == "PreTrainedTokenizerFast"


async def test_version_and_load(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert (await client.get("/version")).json() == {"version": __version__}
    backend.report = REPORT.model_copy(update={"load": LoadReport(running=3, waiting=2)})
    assert (await client.get("/load")).json() == {"server_load": 5}


async def test_invocations_follow_the_bodys_shape(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = [replace(each) for each in backend.script]
    listed = await post(client, "/invocations", {"inputs": "hello ", "parameters": {}})
    assert listed == [{"generated_text": "hello one two three"}]
    chat = await post(client, "/invocations", {"messages": HELLO})
    assert chat["object"] == "chat.completion"
    text = await post(client, "/invocations", {"prompt": "hello"})
    assert text["object"] == "text_completion"


async def test_a_chat_with_tools_has_as_many_tokens_as_it_will_have(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.limit = 1024
    tools = [{"type": "function", "function": {"name": "weather"}}]
    body = {"messages": [{"role": "user", "content": "hello"}], "tools": tools}
    counted = (await client.post("/tokenize", json=body)).json()["tokens"]
    await client.post("/v1/chat/completions", json=body)
    assert backend.submitted[0].token_ids == counted
