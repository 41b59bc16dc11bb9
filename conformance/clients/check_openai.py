"""The openai package."""

import asyncio
import json

import openai
from checks import ADAPTER, BASE, PROMPT, URL, abort_expected, check, raises, run, shouts

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]


@check
def models_are_listed_with_their_lineage() -> None:
    models = {model.id: model for model in client.models.list()}
    assert {BASE, ADAPTER} <= models.keys()
    assert client.models.retrieve(ADAPTER).model_extra["parent"] == BASE


@check
def a_completion_is_generated() -> None:
    answer = client.completions.create(model=BASE, prompt=PROMPT, max_tokens=16, temperature=0)
    assert answer.choices[0].text.strip()
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16


@check
def a_stream_says_the_same_and_ends_with_usage() -> None:
    asked = {"model": BASE, "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    parts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(parts) == whole
    assert chunks[-1].usage.completion_tokens > 0


@check
def the_adapter_is_chosen_by_the_models_name() -> None:
    texts = [
        client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
        .choices[0]
        .text
        for model in (BASE, ADAPTER, BASE)
    ]
    assert [shouts(text) for text in texts] == [False, True, False], texts
    assert texts[0] == texts[2]


@check
def logprobs_and_several_choices_come() -> None:
    answer = client.chat.completions.create(
        model=BASE, messages=MESSAGES, max_tokens=4, n=2, logprobs=True, top_logprobs=3, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(len(token.top_logprobs) == 3 for token in answer.choices[0].logprobs.content)


@check
def token_ids_are_a_prompt() -> None:
    answer = client.completions.create(model=BASE, prompt=[[5, 6, 7], [8, 9]], max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1]


@check
def a_schema_is_followed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = client.chat.completions.create(
        model=BASE,
        messages=MESSAGES,
        max_tokens=64,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "x",
                "strict": True,
                "schema": {**schema, "additionalProperties": False},
            },
        },
    )
    assert '"a"' in answer.choices[0].message.content


@check
def embeddings_are_vectors_of_length_one() -> None:
    answer = client.embeddings.create(model=BASE, input=["a fox", "a hen"], encoding_format="float")
    assert [each.index for each in answer.data] == [0, 1]
    for each in answer.data:
        assert abs(sum(value * value for value in each.embedding) - 1) < 1e-3


@check
def a_tool_is_called_when_it_must_be() -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "feed",
            "parameters": {
                "type": "object",
                "properties": {"animal": {"enum": ["fox", "hen"]}},
                "required": ["animal"],
                "additionalProperties": False,
            },
        },
    }
    answer = client.chat.completions.create(
        model=BASE,
        messages=MESSAGES,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=128,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "feed"
    assert json.loads(call.function.arguments)["animal"] in ("fox", "hen")
    assert answer.choices[0].finish_reason == "tool_calls"


@check
def the_responses_api_answers() -> None:
    answer = client.responses.create(model=BASE, input="Tell me a story.", max_output_tokens=16)
    assert answer.output_text.strip()


@check
def an_unknown_model_is_not_found() -> None:
    error = raises(
        openai.NotFoundError,
        lambda: client.chat.completions.create(model="nobody", messages=MESSAGES),
    )
    assert "nobody" in error.message


@check
def a_bad_value_is_a_bad_request_that_names_it() -> None:
    error = raises(
        openai.BadRequestError,
        lambda: client.completions.create(model=BASE, prompt=PROMPT, temperature=-1),
    )
    assert "temperature" in error.message
    assert error.param == "temperature"


@check
def closing_a_stream_gives_the_request_up() -> None:
    with abort_expected():
        stream = client.completions.create(
            model=BASE,
            prompt=PROMPT,
            max_tokens=1900,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        stream.close()


@check
def many_requests_of_both_models_run_side_by_side() -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as many:
            answers = await asyncio.gather(
                *(
                    many.completions.create(
                        model=(BASE, ADAPTER)[index % 2],
                        prompt=PROMPT,
                        max_tokens=24,
                        temperature=0,
                    )
                    for index in range(8)
                )
            )
        return [answer.choices[0].text for answer in answers]

    texts = asyncio.run(ask())
    assert [shouts(text) for text in texts] == [False, True] * 4, texts


run()
