"""langchain-openai."""

import openai
from checks import ADAPTER, BASE, PROMPT, URL, abort_expected, check, raises, run, shouts
from langchain_openai import ChatOpenAI, OpenAI


def chat(model: str = BASE, **options: object) -> ChatOpenAI:
    asked = {"max_tokens": 24, "temperature": 0, "max_retries": 0} | options
    return ChatOpenAI(model=model, base_url=f"{URL}/v1", api_key="none", **asked)


QUESTION = "Tell me a story about a fox."


@check
def a_chat_is_answered_with_usage() -> None:
    answer = chat().invoke(QUESTION)
    assert answer.content.strip()
    assert answer.usage_metadata["output_tokens"] > 0


@check
def a_stream_says_the_same() -> None:
    parts = list(chat(stream_usage=True).stream(QUESTION))
    assert "".join(part.content for part in parts) == chat().invoke(QUESTION).content
    assert sum((part.usage_metadata or {}).get("output_tokens", 0) for part in parts) > 0


@check
def completions_and_the_adapter_work() -> None:
    llm = OpenAI(model=ADAPTER, base_url=f"{URL}/v1", api_key="none", max_tokens=24, temperature=0)
    assert shouts(llm.invoke(PROMPT))
    assert shouts(chat(ADAPTER).invoke(QUESTION).content)


@check
def an_unknown_model_is_not_found() -> None:
    raises(openai.NotFoundError, lambda: chat("nobody").invoke(QUESTION))


@check
def structured_output_is_parsed() -> None:
    schema = {
        "title": "answer",
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found = chat(max_tokens=64).with_structured_output(schema, method="json_schema")
    assert isinstance(found.invoke(QUESTION)["a"], bool)


@check
def closing_a_stream_gives_the_request_up() -> None:
    with abort_expected():
        stream = chat(max_tokens=1500, extra_body={"ignore_eos": True}).stream(QUESTION)
        next(stream)
        stream.close()


run()
