"""The text-generation package, Text Generation Inference's own client.

It has no way to name an adapter, and its chat stream cannot read the end of any server's stream.
"""

from checks import BASE, PROMPT, URL, abort_expected, check, raises, run
from text_generation import Client
from text_generation.errors import ValidationError

client = Client(URL, timeout=60)


@check
def text_is_generated_with_details() -> None:
    answer = client.generate(PROMPT, max_new_tokens=8, decoder_input_details=True, top_n_tokens=2)
    assert answer.generated_text.strip()
    assert answer.details.finish_reason == "length"
    assert len(answer.details.tokens) == answer.details.generated_tokens == 8
    assert answer.details.prefill[0].logprob is None
    assert answer.details.seed is None


@check
def a_stream_says_the_same() -> None:
    whole = client.generate(PROMPT, max_new_tokens=16).generated_text
    events = list(client.generate_stream(PROMPT, max_new_tokens=16))
    assert events[-1].generated_text == whole
    assert len(events) == 16


@check
def a_chat_is_answered() -> None:
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    answer = client.chat(messages=messages, max_tokens=16)
    assert answer.choices[0].message.content.strip()
    assert answer.model == BASE


@check
def best_of_chooses_among_samples() -> None:
    answer = client.generate(PROMPT, max_new_tokens=4, do_sample=True, best_of=2)
    assert len(answer.details.best_of_sequences) == 1


@check
def too_long_a_prompt_is_a_validation_error() -> None:
    error = raises(ValidationError, lambda: client.generate("fox " * 4000, max_new_tokens=4))
    assert "`inputs`" in str(error)


@check
def closing_a_stream_gives_the_request_up() -> None:
    with abort_expected():
        stream = client.generate_stream(PROMPT, max_new_tokens=1900)
        next(stream)
        stream.close()
        del stream


run()
