"""litellm's providers for vLLM, Text Generation Inference and Triton."""

import litellm
from checks import ADAPTER, BASE, PROMPT, URL, abort_expected, check, raises, run, shouts

litellm.suppress_debug_info = True
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
VLLM = {"api_base": f"{URL}/v1", "api_key": "none", "max_tokens": 24, "max_retries": 0}


def vllm(model: str = BASE, **options: object) -> object:
    asked = VLLM | {"temperature": 0} | options
    return litellm.completion(f"hosted_vllm/{model}", messages=MESSAGES, **asked)


@check
def vllms_provider_answers_and_switches() -> None:
    texts = [vllm(model).choices[0].message.content for model in (BASE, ADAPTER)]
    assert [shouts(text) for text in texts] == [False, True], texts


@check
def vllms_provider_streams() -> None:
    parts = [chunk.choices[0].delta.content or "" for chunk in vllm(stream=True)]
    assert "".join(parts) == vllm().choices[0].message.content


@check
def vllms_provider_tells_errors() -> None:
    raises(litellm.NotFoundError, lambda: vllm("nobody"))
    raises(litellm.BadRequestError, lambda: vllm(temperature=-1))


@check
def text_completions_work() -> None:
    answer = litellm.text_completion(
        model=f"text-completion-openai/{BASE}", prompt=PROMPT, temperature=0, **VLLM
    )
    assert answer.choices[0].text.strip()


@check
def the_huggingface_provider_answers() -> None:
    answer = litellm.completion(
        f"huggingface/{BASE}", messages=MESSAGES, api_base=URL, api_key="none", max_tokens=8
    )
    assert answer.choices[0].message.content.strip()


@check
def tritons_provider_generates_streams_and_infers() -> None:
    asked = {"messages": MESSAGES, "max_tokens": 24, "api_key": "none"}
    base = f"{URL}/v2/models/{ADAPTER}"
    whole = litellm.completion(f"triton/{ADAPTER}", api_base=f"{base}/generate", **asked)
    assert MESSAGES[0]["content"] in whole.choices[0].message.content
    stream = litellm.completion(
        f"triton/{ADAPTER}", api_base=f"{base}/generate", stream=True, **asked
    )
    assert shouts("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    tensors = litellm.completion(f"triton/{ADAPTER}", api_base=f"{base}/infer", **asked)
    assert tensors.choices[0].message.content.strip()


@check
def closing_a_stream_gives_the_request_up() -> None:
    with abort_expected():
        stream = vllm(stream=True, max_tokens=1500, ignore_eos=True)
        next(iter(stream))
        stream.completion_stream.response.close() if hasattr(
            stream.completion_stream, "response"
        ) else stream.completion_stream.close()


run()
