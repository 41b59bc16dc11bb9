"""What a model takes and gives in this protocol: the tensors of Triton's vLLM backend.

Pure: reads a request's tensors and parameters into `Inputs`. Which model, and whether its sampling
parameters are good, others decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graft_runtime.errors import InvalidRequestError
from graft_runtime.server.body import parse_object
from graft_runtime.server.kserve.sampling import FIELD_NAMES, TEXT_FIELDS
from graft_runtime.server.kserve.tensors import Element, Tensor

VERSION: Final = "1"
"""Every model has this one; what changes is the adapter's revision behind its name."""

INPUTS: Final = {
    "text_input": "BYTES",
    "stream": "BOOL",
    "sampling_parameters": "BYTES",
    "exclude_input_in_output": "BOOL",
    "return_finish_reason": "BOOL",
    "return_cumulative_logprob": "BOOL",
    "return_logprobs": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
}
"""Names and element types; only the text must be given, and each has one element."""
OUTPUTS: Final = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "cumulative_logprob": "FP32",
    "logprobs": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
REFUSED_INPUTS: Final = frozenset({"image", "embedding_request"})

_RESERVED: Final = frozenset({"binary_data_output", "triton_enable_empty_final_response"})
"""Parameters that shape the answer and never reach the model."""
_IGNORED: Final = frozenset(
    {
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "timeout",
        "headers",
    }
)
"""Parameters that Triton reserves for schedulers that we do not have."""


@dataclass(frozen=True)
class Inputs:
    """One request's inputs, read."""

    text: str
    stream: bool
    exclude_input: bool | None
    """None leaves it to whether the answer is streamed."""
    sampling: Mapping[str, Any]
    """Not checked yet."""
    outputs: tuple[str, ...]
    """Names of the output tensors that are wanted, in the answer's order."""
    ignored: tuple[str, ...] = ()
    """Parameters that change nothing."""


def read_inputs(
    tensors: Iterable[Tensor], parameters: Mapping[str, Any], requested: Sequence[str] = ()
) -> Inputs:
    """Read a request.

    Args:
        tensors: Its input tensors; their element types have been checked against their values.
        parameters: Its parameters: sampling parameters, if no tensor brings these.
        requested: Names of the outputs it asks for; none asks for the usual ones.

    Raises:
        InvalidRequestError: An input is missing, unknown, twice there or of another type.
    """
    given: dict[str, Element] = {}
    beside: dict[str, Any] = {}
    for tensor in tensors:
        if tensor.name in given or tensor.name in beside:
            raise InvalidRequestError("an input is there twice", param="inputs")
        if tensor.name in INPUTS:
            given[tensor.name] = _single(tensor, INPUTS[tensor.name])
        else:
            beside[tensor.name] = _as_parameter(tensor)
    if "text_input" not in given:
        message = "expected an input tensor 'text_input'"
        raise InvalidRequestError(message, param="text_input")
    sampling = {**_own(parameters), **beside}
    if "sampling_parameters" in given:
        sampling = {**_parse(given["sampling_parameters"]), **beside}
    return Inputs(
        text=_text(given["text_input"], "text_input"),
        stream=bool(given.get("stream", False)),
        exclude_input=_flag(given.get("exclude_input_in_output")),
        sampling=_read_strings(sampling),
        outputs=_outputs(given, requested),
        ignored=tuple(sorted(parameters.keys() & _IGNORED)),
    )


def refuse_stream(inputs: Inputs) -> None:
    """Refuse what asks for a stream where one answer is all there can be.

    Raises:
        InvalidRequestError: It does.
    """
    if inputs.stream:
        message = "`stream` is not possible here: use generate_stream or the RPC ModelStreamInfer"
        raise InvalidRequestError(message, param="stream")


def _flag(value: Element | None) -> bool | None:
    return None if value is None else bool(value)


def _single(tensor: Tensor, datatype: str) -> Element:
    """Return the one element of a known input."""
    if tensor.datatype != datatype:
        message = f"input '{tensor.name}' must have the data-type {datatype}"
        raise InvalidRequestError(message, param=tensor.name)
    if len(tensor.values) != 1:
        message = f"input '{tensor.name}' must have exactly one element"
        raise InvalidRequestError(message, param=tensor.name)
    return tensor.values[0]


def _as_parameter(tensor: Tensor) -> Any:
    """Return a sampling parameter that came as a tensor of its own, as some clients send them."""
    if tensor.name in REFUSED_INPUTS:
        raise InvalidRequestError(f"input '{tensor.name}' is not supported", param=tensor.name)
    if tensor.name not in FIELD_NAMES:
        known = ", ".join(sorted(INPUTS))
        message = f"unexpected inference input; the model takes {known}"
        raise InvalidRequestError(message, param="inputs")
    if len(tensor.values) != 1:
        message = f"input '{tensor.name}' must have exactly one element"
        raise InvalidRequestError(message, param=tensor.name)
    value = tensor.values[0]
    return _text(value, tensor.name) if isinstance(value, bytes) else value


def _text(value: Element, name: str) -> str:
    try:
        text = value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"input '{name}' is not UTF-8", param=name) from error
    if "\0" in text:
        raise InvalidRequestError(f"input '{name}' holds a NUL character", param=name)
    return text


def _own(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in parameters.items()
        if name not in _RESERVED | _IGNORED and not name.startswith("triton_")
    }


def _parse(value: Element) -> dict[str, Any]:
    try:
        return parse_object(value if isinstance(value, bytes) else b"")
    except InvalidRequestError as error:
        message = f"input 'sampling_parameters': {error.message}"
        raise InvalidRequestError(message, param="sampling_parameters") from error


def _read_strings(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with those that came as strings read: clients write numbers that way."""
    return {
        name: _read_string(value) if isinstance(value, str) and name not in TEXT_FIELDS else value
        for name, value in sampling.items()
    }


def _read_string(value: str) -> Any:
    """Return what a string says, or the string where that is nothing in JSON."""
    plain = {"True": True, "False": False, "None": None}
    if value in plain:
        return plain[value]
    try:
        read = parse_object(b'{"value":' + value.encode() + b"}")
    except (InvalidRequestError, UnicodeEncodeError):
        return value
    return read["value"] if read.keys() == {"value"} else value


def _outputs(given: Mapping[str, Element], requested: Sequence[str]) -> tuple[str, ...]:
    """Return the wanted outputs: those named, or the text and those that a flag asks for."""
    if any(name not in OUTPUTS for name in requested):
        message = f"unexpected inference output; the model gives {', '.join(OUTPUTS)}"
        raise InvalidRequestError(message, param="outputs")
    if requested:
        return tuple(dict.fromkeys(requested))
    return tuple(
        name for name in OUTPUTS if name == "text_output" or given.get(f"return_{name}") is True
    )
