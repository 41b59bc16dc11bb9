"""huggingface_hub's InferenceClient."""

from checks import ADAPTER, BASE, PROMPT, URL, abort_expected, check, raises, run, shouts
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError

client = InferenceClient(model=URL)
chats = InferenceClient(base_url=f"{URL}/v1", api_key="none")
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]


@check
def text_is_generated_with_details() -> None:
    answer = client.text_generation(
        PROMPT, max_new_tokens=8, details=True, return_full_text=False, top_n_tokens=2
    )
    assert answer.generated_text.strip()
    assert answer.details.generated_tokens == len(answer.details.tokens) == 8
    assert answer.details.finish_reason == "length"


@check
def a_stream_says_the_same() -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=16, return_full_text=False)
    events = list(
        client.text_generation(
            PROMPT, max_new_tokens=16, stream=True, details=True, return_full_text=False
        )
    )
    assert events[-1].generated_text == whole
    assert "".join(event.token.text for event in events) == whole
    assert events[-1].details.generated_tokens == 16


@check
def the_adapter_is_named_in_the_request() -> None:
    text = client.text_generation(
        PROMPT, max_new_tokens=24, adapter_id=ADAPTER, return_full_text=False
    )
    assert shouts(text), text
    assert not shouts(client.text_generation(PROMPT, max_new_tokens=24, return_full_text=False))


@check
def a_chat_needs_no_models_name() -> None:
    answer = InferenceClient(base_url=URL).chat_completion(MESSAGES, max_tokens=16)
    assert answer.choices[0].message.content.strip()


@check
def a_chat_streams_and_switches_to_the_adapter() -> None:
    stream = chats.chat_completion(
        MESSAGES, model=ADAPTER, max_tokens=24, temperature=0, stream=True
    )
    text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert shouts(text), text


@check
def a_schema_is_followed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = chats.chat_completion(
        MESSAGES,
        model=BASE,
        max_tokens=64,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema, "strict": True},
        },
    )
    assert '"a"' in answer.choices[0].message.content


@check
def a_bad_value_is_a_validation_error() -> None:
    error = raises(
        ValidationError, lambda: client.text_generation(PROMPT, max_new_tokens=8, top_p=5.0)
    )
    assert "top_p" in str(error)


@check
def an_unknown_model_is_an_http_error() -> None:
    error = raises(HfHubHTTPError, lambda: chats.chat_completion(MESSAGES, model="nobody"))
    assert error.response.status_code == 404


@check
def closing_a_stream_gives_the_request_up() -> None:
    with abort_expected():
        stream = client.text_generation(PROMPT, max_new_tokens=1900, stream=True)
        next(iter(stream))
        stream.close()
        del stream


run()
