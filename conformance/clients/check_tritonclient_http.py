"""tritonclient over HTTP."""

import json

import numpy as np
import tritonclient.http as triton
from checks import ADAPTER, BASE, PROMPT, URL, check, raises, run, shouts
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(URL.removeprefix("http://"))


def text(value: str = PROMPT, *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=object), binary_data=binary)
    return tensor


def sampling(**values: object) -> triton.InferInput:
    tensor = triton.InferInput("sampling_parameters", [1], "BYTES")
    document = json.dumps({"temperature": "0", "max_tokens": "24"} | values)
    tensor.set_data_from_numpy(np.array([document.encode()], dtype=object))
    return tensor


def flag(name: str) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([True]))
    return tensor


def generated(*inputs: triton.InferInput, model: str = BASE, **options: object) -> str:
    result = client.infer(model, list(inputs), **options)
    found = result.as_numpy("text_output")[0]
    return found if isinstance(found, str) else found.decode()


@check
def the_server_and_models_describe_themselves() -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(BASE)
    assert client.is_model_ready(ADAPTER, "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "graft"
    assert client.get_model_metadata(BASE)["versions"] == ["1"]
    assert client.get_model_config(BASE)["model_transaction_policy"]["decoupled"]
    assert {model["name"] for model in client.get_model_repository_index()} >= {BASE, ADAPTER}


@check
def binary_and_json_tensors_give_the_same() -> None:
    binary = generated(text(), sampling())
    assert binary.startswith(PROMPT)
    outputs = [triton.InferRequestedOutput("text_output", binary_data=False)]
    plain = generated(text(binary=False), sampling(), outputs=outputs)
    assert plain == binary


@check
def both_compressions_work() -> None:
    expected = generated(text(), sampling())
    for name in ("gzip", "deflate"):
        found = generated(
            text(),
            sampling(),
            request_compression_algorithm=name,
            response_compression_algorithm=name,
        )
        assert found == expected


@check
def the_adapter_is_a_model_or_a_sampling_parameter() -> None:
    short = flag("exclude_input_in_output")
    assert shouts(generated(text(), sampling(), short, model=ADAPTER))
    assert shouts(generated(text(), sampling(lora_name=ADAPTER), short))
    assert not shouts(generated(text(), sampling(), short))


@check
def more_outputs_come_when_asked_for() -> None:
    names = ("finish_reason", "cumulative_logprob", "num_input_tokens", "num_output_tokens")
    flags = [flag(f"return_{name}") for name in names]
    result = client.infer(BASE, [text(), sampling(max_tokens=5), *flags], request_id="r1")
    assert result.get_response()["id"] == "r1"
    assert result.as_numpy("finish_reason")[0] == b"length"
    assert result.as_numpy("num_output_tokens")[0] == 5
    assert result.as_numpy("cumulative_logprob")[0] < 0


@check
def statistics_count() -> None:
    before = client.get_inference_statistics(BASE)["model_stats"][0]["inference_count"]
    generated(text(), sampling(max_tokens=1))
    after = client.get_inference_statistics(BASE)["model_stats"][0]["inference_count"]
    assert after == before + 1


@check
def errors_have_their_status_and_words() -> None:
    unknown = raises(InferenceServerException, lambda: generated(text(), model="nobody"))
    assert unknown.message().startswith("Request for unknown model: 'nobody'")
    assert unknown.status() == "404"
    bad = raises(InferenceServerException, lambda: generated(text(), sampling(temperature=-1)))
    assert (bad.status(), "temperature" in bad.message()) == ("400", True)
    raises(InferenceServerException, lambda: client.load_model("x"))


@check
def many_requests_run_side_by_side() -> None:
    many = triton.InferenceServerClient(URL.removeprefix("http://"), concurrency=8)
    short = flag("exclude_input_in_output")
    calls = [
        many.async_infer((BASE, ADAPTER)[index % 2], [text(), sampling(), short])
        for index in range(8)
    ]
    texts = [call.get_result().as_numpy("text_output")[0].decode() for call in calls]
    assert [shouts(each) for each in texts] == [False, True] * 4, texts


run()
