"""What the bodies under ``/v2`` look like, for the server's own description of itself.

Requests are read by hand in `http_infer` and `http_generate`, which take more than stands here:
single values as lists, sampling parameters of other names, tensors' bytes behind the JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, Field

from graft_runtime.server.kserve.http_infer import InferDocument
from graft_runtime.server.kserve.sampling import TritonFields

_MODEL: Final = "/v2/models/{model}"
_PLACES: Final = (_MODEL, f"{_MODEL}/versions/{{version}}")


class GenerateDocument(TritonFields):
    """The flat object of the generate extension; each key may stand under ``parameters``, too."""

    id: str = Field(default="", max_length=1024)
    text_input: str
    stream: bool = False
    exclude_input_in_output: bool | None = None
    return_finish_reason: bool = False
    return_cumulative_logprob: bool = False
    return_logprobs: bool = False
    return_num_input_tokens: bool = False
    return_num_output_tokens: bool = False
    parameters: dict[str, str | float | bool] = Field(default={})


class IndexDocument(BaseModel):
    """What is asked of the repository."""

    ready: bool = False


class LoadDocument(BaseModel):
    """How an adapter is loaded."""

    parameters: dict[str, Any] = Field(default={})
    """``lora_path``, or ``config`` with it inside."""


BODIES: Final[Mapping[str, tuple[type[BaseModel], ...]]] = {
    **{f"{place}/infer": (InferDocument,) for place in _PLACES},
    **{f"{place}/generate": (GenerateDocument,) for place in _PLACES},
    **{f"{place}/generate_stream": (GenerateDocument,) for place in _PLACES},
    "/v2/repository/index": (IndexDocument,),
    "/v2/repository/models/{model}/load": (LoadDocument,),
}
"""What a POST to each path may hold."""

STREAMS: Final = frozenset(f"{place}/generate_stream" for place in _PLACES)
"""What is answered with events."""

_TEXT: Final = {"type": "string"}
_TENSOR: Final = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "datatype": {"enum": ["BYTES", "FP32", "UINT32"]},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
    "required": ["name", "datatype", "shape"],
}
_NAMED: Final = {"model_name": _TEXT, "model_version": {"const": "1"}, "id": _TEXT}
_INFER: Final = {
    "type": "object",
    "properties": {**_NAMED, "outputs": {"type": "array", "items": _TENSOR}},
    "required": ["model_name", "model_version", "outputs"],
}
_GENERATE: Final = {
    "type": "object",
    "properties": {
        **_NAMED,
        "text_output": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    },
    "required": ["model_name", "model_version", "text_output"],
}
_TENSORS: Final = {
    "type": "array",
    "items": {"type": "object", "required": ["name", "datatype", "shape"]},
}
_METADATA: Final = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "versions": {"const": ["1"]},
        "platform": _TEXT,
        "inputs": _TENSORS,
        "outputs": _TENSORS,
    },
    "required": ["name", "versions", "platform", "inputs", "outputs"],
}
_SERVER: Final = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "version": _TEXT,
        "extensions": {"type": "array", "items": _TEXT},
    },
    "required": ["name", "version", "extensions"],
}
_INDEX: Final = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "version": _TEXT,
            "state": {"enum": ["READY", "UNAVAILABLE"]},
            "reason": _TEXT,
        },
        "required": ["name", "state"],
    },
}
_STATISTICS: Final = {"type": "object", "required": ["model_stats"]}

ANSWERS: Final[Mapping[str, Mapping[str, Any]]] = {
    **{f"{place}/infer": _INFER for place in _PLACES},
    **{f"{place}/generate": _GENERATE for place in _PLACES},
    **{f"{place}/stats": _STATISTICS for place in _PLACES},
    **dict.fromkeys(_PLACES, _METADATA),
    "/v2": _SERVER,
    "/v2/models/stats": _STATISTICS,
    "/v2/repository/index": _INDEX,
}
"""Schema of each whole answer in JSON."""

BINARY: Final = frozenset(f"{place}/infer" for place in _PLACES)
"""What may be answered with bytes behind the JSON."""
