"""Between the messages of the wire and tensors and plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.kserve.contract import VERSION, Inputs, read_inputs
from graft_runtime.server.kserve.inference_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
)
from graft_runtime.server.kserve.tensors import (
    Tensor,
    from_bytes,
    from_json,
    num_elements,
    to_bytes,
)

MAX_TENSORS: Final = 64
FINAL: Final = "triton_final_response"
WANTS_EMPTY_FINAL: Final = "triton_enable_empty_final_response"

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read_request(request: ModelInferRequest) -> Inputs:
    """Return what a request asks for.

    Raises:
        InvalidRequestError: Its parts do not add up, or ask for what is not done here.
    """
    if len(request.inputs) > MAX_TENSORS or len(request.outputs) > MAX_TENSORS:
        raise InvalidRequestError("too many tensors", param="inputs")
    if request.raw_input_contents and len(request.raw_input_contents) != len(request.inputs):
        message = "raw_input_contents must have one element for each input"
        raise InvalidRequestError(message, param="raw_input_contents")
    for each in (*request.inputs, *request.outputs):
        _refuse(each.parameters)
    raw: Sequence[bytes] = request.raw_input_contents
    tensors = [
        from_bytes(each.name, each.datatype, each.shape, raw[position]) if raw else _typed(each)
        for position, each in enumerate(request.inputs)
    ]
    names = [each.name for each in request.outputs]
    return read_inputs(tensors, parameters_of(request), names)


def parameters_of(request: ModelInferRequest) -> dict[str, Any]:
    """Return a request's parameters as plain values."""
    return plain_parameters(request.parameters)


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of any message as plain values; one without a value is None."""
    kinds = {name: each.WhichOneof("parameter_choice") for name, each in parameters.items()}
    return {
        name: None if kinds[name] is None else getattr(each, kinds[name])
        for name, each in parameters.items()
    }


def _refuse(parameters: Mapping[str, InferParameter]) -> None:
    for name in parameters:
        if name.startswith("shared_memory_"):
            raise InvalidRequestError("shared memory is not supported", param="parameters")
        if name == "classification":
            raise InvalidRequestError("`classification` is not supported", param="classification")


def _typed(tensor: ModelInferRequest.InferInputTensor) -> Tensor:
    """Return a tensor whose values stand in the message itself."""
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        message = f"tensor '{tensor.name}' has an unknown data-type, or one that must come raw"
        raise InvalidRequestError(message, param=tensor.name)
    values = list(getattr(tensor.contents, field))
    if tensor.datatype != "BYTES":
        return from_json(tensor.name, tensor.datatype, tensor.shape, values)
    if len(values) != num_elements(tensor.name, tensor.shape):
        message = f"tensor '{tensor.name}' has {len(values)} values, its shape says otherwise"
        raise InvalidRequestError(message, param=tensor.name)
    return Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), tuple(values))


def response_to(request: ModelInferRequest, tensors: Sequence[Tensor] = ()) -> ModelInferResponse:
    """Return an answer; values are always raw, since clients look nowhere else."""
    return ModelInferResponse(
        model_name=request.model_name,
        model_version=VERSION,
        id=request.id,
        outputs=[
            ModelInferResponse.InferOutputTensor(
                name=each.name, datatype=each.datatype, shape=each.shape
            )
            for each in tensors
        ],
        raw_output_contents=[to_bytes(each) for each in tensors],
    )
