"""What the server tells of itself and of its models, in the words of the protocol.

Pure values of JSON's types: HTTP sends them as they are, gRPC reads them into its messages.
"""

from __future__ import annotations

from typing import Any, Final

from graft_protocol import __version__
from graft_runtime.server.backend import Backend
from graft_runtime.server.kserve.contract import INPUTS, OUTPUTS, VERSION

SERVER_NAME: Final = "graft"
PLATFORM: Final = "graft"
BACKEND: Final = "vllm"
"""Whose tensors the models have; clients choose by it."""
EXTENSIONS: Final = (
    "binary_tensor_data",
    "generate",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)

_TEXT_INPUT: Final = "text_input"
_CONFIG_TYPES: Final = {
    "BYTES": "TYPE_STRING",
    "BOOL": "TYPE_BOOL",
    "FP32": "TYPE_FP32",
    "UINT32": "TYPE_UINT32",
}
_ONE_EACH: Final = frozenset({"num_input_tokens"})
"""Outputs of one element, however many answers were asked for."""


def server_metadata() -> dict[str, Any]:
    """Return the server's name, version and what it knows beyond the plain protocol."""
    return {"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(name: str) -> dict[str, Any]:
    """Return a model's tensors."""
    return {
        "name": name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [
            {"name": tensor, "datatype": datatype, "shape": [1]}
            for tensor, datatype in INPUTS.items()
        ],
        "outputs": [
            {"name": tensor, "datatype": datatype, "shape": [1 if tensor in _ONE_EACH else -1]}
            for tensor, datatype in OUTPUTS.items()
        ],
    }


def model_config(name: str) -> dict[str, Any]:
    """Return a model's configuration, as far as clients read it."""
    return {
        "name": name,
        "platform": "",
        "backend": BACKEND,
        "max_batch_size": 0,
        "input": [
            {
                "name": tensor,
                "data_type": _CONFIG_TYPES[datatype],
                "dims": [1],
                "optional": tensor != _TEXT_INPUT,
            }
            for tensor, datatype in INPUTS.items()
        ],
        "output": [
            {
                "name": tensor,
                "data_type": _CONFIG_TYPES[datatype],
                "dims": [1 if tensor in _ONE_EACH else -1],
            }
            for tensor, datatype in OUTPUTS.items()
        ],
        "model_transaction_policy": {"decoupled": True},
    }


def repository_index(backend: Backend, *, only_ready: bool) -> list[dict[str, str]]:
    """Return what can be asked for now, as the list of models has it.

    What is on its way or failed is its owner's to see, in the adapter's status.
    """
    is_ready = backend.health().ready
    if only_ready and not is_ready:
        return []
    state = "READY" if is_ready else "UNAVAILABLE"
    return [
        {"name": model.name, "version": VERSION, "state": state, "reason": ""}
        for model in backend.models()
    ]
