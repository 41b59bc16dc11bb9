"""The lorax-client package."""

from checks import ADAPTER, PROMPT, URL, abort_expected, check, raises, run, shouts
from lorax import Client
from lorax.errors import NotFoundError, ValidationError

client = Client(URL, timeout=60)


@check
def text_is_generated_with_details() -> None:
    answer = client.generate(PROMPT, max_new_tokens=8, return_k_alternatives=2)
    assert answer.generated_text.strip()
    assert answer.details.generated_tokens == 8
    assert answer.details.prompt_tokens > 0
    assert len(answer.details.tokens[0].alternative_tokens) == 2


@check
def a_stream_says_the_same() -> None:
    whole = client.generate(PROMPT, max_new_tokens=16).generated_text
    events = list(client.generate_stream(PROMPT, max_new_tokens=16))
    assert events[-1].generated_text == whole
    assert events[-1].details.prompt_tokens > 0


@check
def the_adapter_is_named_in_the_request() -> None:
    texts = [
        client.generate(PROMPT, max_new_tokens=24, adapter_id=adapter).generated_text
        for adapter in (None, ADAPTER, "")
    ]
    assert [shouts(text) for text in texts] == [False, True, False], texts


@check
def json_is_followed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = client.generate(
        PROMPT, max_new_tokens=64, response_format={"type": "json_object", "schema": schema}
    )
    assert '"a"' in answer.generated_text


@check
def too_long_a_prompt_is_a_validation_error() -> None:
    error = raises(ValidationError, lambda: client.generate("fox " * 4000, max_new_tokens=4))
    assert "`inputs`" in str(error)


@check
def an_unknown_adapter_is_an_error() -> None:
    raises(NotFoundError, lambda: client.generate(PROMPT, adapter_id="nobody"))


@check
def closing_a_stream_gives_the_request_up() -> None:
    with abort_expected():
        stream = client.generate_stream(PROMPT, max_new_tokens=1900, ignore_eos_token=True)
        next(stream)
        stream.close()
        del stream


run()
