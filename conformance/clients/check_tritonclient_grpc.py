"""tritonclient over gRPC."""

import json
import queue
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from checks import ADAPTER, BASE, FACTS, PROMPT, abort_expected, check, raises, run, shouts
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(FACTS["grpc"])
SECONDS = 60


def tensor(name: str, datatype: str, value: object) -> triton.InferInput:
    found = triton.InferInput(name, [1], datatype)
    kind = object if datatype == "BYTES" else bool
    found.set_data_from_numpy(np.array([value], dtype=kind))
    return found


def inputs(*, stream: bool = False, **sampling: object) -> list[triton.InferInput]:
    document = json.dumps({"temperature": "0", "max_tokens": "24"} | sampling)
    return [
        tensor("text_input", "BYTES", PROMPT.encode()),
        tensor("sampling_parameters", "BYTES", document.encode()),
        tensor("exclude_input_in_output", "BOOL", True),
        tensor("stream", "BOOL", stream),
    ]


def generated(model: str = BASE, **sampling: object) -> str:
    result = client.infer(model, inputs(**sampling))
    return result.as_numpy("text_output")[0].decode()


def streamed(*asked: dict[str, Any]) -> dict[str, list[Any]]:
    """Send requests on one stream; return each one's results by its id."""
    arrived: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: arrived.put((result, error)))
    for request in asked:
        client.async_stream_infer(enable_empty_final_response=True, **request)
    open_ids = {request["request_id"] for request in asked}
    found: dict[str, list[Any]] = {id: [] for id in open_ids}
    while open_ids:
        result, error = arrived.get(timeout=SECONDS)
        assert error is None, error
        response = result.get_response()
        if response.outputs:
            found[response.id].append(result.as_numpy("text_output")[0].decode())
        if response.parameters["triton_final_response"].bool_param:
            open_ids.discard(response.id)
    client.stop_stream()
    return found


@check
def the_server_and_models_describe_themselves() -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(BASE, "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata().name == "graft"
    assert client.get_model_metadata(BASE).outputs[0].name == "text_output"
    assert client.get_model_config(BASE).config.model_transaction_policy.decoupled
    assert client.get_inference_statistics(BASE).model_stats[0].name == BASE
    names = {model.name for model in client.get_model_repository_index().models}
    assert names >= {BASE, ADAPTER}


@check
def text_is_generated_and_the_adapter_switched_to() -> None:
    texts = [generated(), generated(ADAPTER), generated(lora_name=ADAPTER), generated()]
    assert [shouts(text) for text in texts] == [False, True, True, False], texts


@check
def a_stream_says_the_same_for_several_requests_side_by_side() -> None:
    found = streamed(
        {"model_name": BASE, "inputs": inputs(stream=True), "request_id": "one"},
        {"model_name": ADAPTER, "inputs": inputs(stream=True), "request_id": "two"},
    )
    assert "".join(found["one"]) == generated()
    assert "".join(found["two"]) == generated(ADAPTER)
    assert len(found["one"]) > 2


@check
def an_error_in_a_stream_leaves_the_stream_open() -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: arrived.put((result, error)))
    client.async_stream_infer("nobody", inputs(stream=True), request_id="bad")
    _, error = arrived.get(timeout=SECONDS)
    assert "Request for unknown model" in error.message()
    client.async_stream_infer(BASE, inputs(), request_id="good")
    result, error = arrived.get(timeout=SECONDS)
    assert error is None
    assert result.as_numpy("text_output")[0].decode() == generated()
    client.stop_stream()


@check
def errors_have_their_status() -> None:
    unknown = raises(InferenceServerException, lambda: generated("nobody"))
    assert unknown.status() == "StatusCode.NOT_FOUND"
    bad = raises(InferenceServerException, lambda: generated(temperature=-1))
    assert bad.status() == "StatusCode.INVALID_ARGUMENT"
    assert "temperature" in bad.message()


@check
def cancelling_a_stream_gives_its_requests_up() -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    with abort_expected():
        client.start_stream(lambda result, error: arrived.put((result, error)))
        long = inputs(stream=True, max_tokens=1900, ignore_eos=True)
        client.async_stream_infer(BASE, long, request_id="long")
        assert arrived.get(timeout=SECONDS)[1] is None
        client.stop_stream(cancel_requests=True)


@check
def a_deadline_ends_a_request() -> None:
    asked = inputs(max_tokens=1900, ignore_eos=True)
    error = raises(InferenceServerException, lambda: client.infer(BASE, asked, client_timeout=0.3))
    assert error.status() == "StatusCode.DEADLINE_EXCEEDED"


run()
