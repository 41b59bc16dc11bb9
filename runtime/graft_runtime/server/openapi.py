"""The public port's OpenAPI document: made of the same models that read the requests.

`app` serves it. Routes whose bodies no model reads as a whole are described by their paths alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from graft_runtime.server.anthropic.fields import CountFields, MessagesFields
from graft_runtime.server.errors import Family, family_of
from graft_runtime.server.kserve import shapes
from graft_runtime.server.openai.chat_fields import ChatFields
from graft_runtime.server.openai.completions import CompletionFields
from graft_runtime.server.openai.embeddings import EmbeddingFields, EmbedFields
from graft_runtime.server.openai.responses_fields import ResponsesFields
from graft_runtime.server.tgi_fields import GenerateFields, Parameters
from graft_runtime.server.tokens import (
    ChatTokenizeFields,
    DetokenizeFields,
    TokenizeChatFields,
    TokenizePromptFields,
)

BODIES: Final[Mapping[str, tuple[type[BaseModel], ...]]] = {
    "/": (GenerateFields,),
    "/generate": (GenerateFields,),
    "/generate_stream": (GenerateFields,),
    "/v1/completions": (CompletionFields,),
    "/v1/chat/completions": (ChatFields,),
    "/v1/responses": (ResponsesFields,),
    "/v1/messages": (MessagesFields,),
    "/v1/messages/count_tokens": (CountFields,),
    "/v1/embeddings": (EmbeddingFields,),
    "/embed": (EmbedFields,),
    "/tokenize": (GenerateFields, TokenizePromptFields, TokenizeChatFields),
    "/chat_tokenize": (ChatTokenizeFields,),
    "/detokenize": (DetokenizeFields,),
    "/invocations": (GenerateFields, ChatFields, CompletionFields, EmbeddingFields),
    **shapes.BODIES,
}
"""What a POST to each path may hold."""

ANSWERS: Final[Mapping[str, tuple[str, ...]]] = {
    "/generate": ("generated_text",),
    "/v1/completions": ("id", "object", "created", "model", "choices", "usage"),
    "/v1/chat/completions": ("id", "object", "created", "model", "choices", "usage"),
    "/v1/responses": ("id", "object", "created_at", "model", "status", "output", "usage"),
    "/v1/messages": ("id", "type", "role", "model", "content", "stop_reason", "usage"),
    "/v1/messages/count_tokens": ("input_tokens",),
    "/v1/embeddings": ("object", "model", "data", "usage"),
    "/embed": ("embeddings",),
    "/chat_tokenize": ("tokenize_response", "templated_text"),
    "/detokenize": ("prompt",),
    "/v1/models": ("object", "data"),
    "/version": ("version",),
    "/load": ("server_load",),
}
"""Keys that a whole answer always has."""

STREAMS: Final = frozenset(
    {
        "/",
        "/generate_stream",
        "/invocations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
        *shapes.STREAMS,
    }
)
"""What may be answered with events."""

_WITHOUT_CONTENT: Final = frozenset({"/v2/repository/models/{model}/load"})
_TEXT: Final = {"type": "string"}
_OPENAI_FIELDS: Final = {
    "message": _TEXT,
    "type": _TEXT,
    "param": {"anyOf": [_TEXT, {"type": "null"}]},
}
ERRORS: Final[Mapping[Family, Mapping[str, Any]]] = {
    "openai": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {**_OPENAI_FIELDS, "code": _TEXT},
                "required": ["message", "type", "param", "code"],
            },
            "object": {"const": "error"},
            **_OPENAI_FIELDS,
            "code": {"type": "integer"},
        },
        "required": ["error", "object", "message", "type", "param", "code"],
    },
    "tgi": {
        "type": "object",
        "properties": {"error": _TEXT, "error_type": _TEXT},
        "required": ["error", "error_type"],
    },
    "triton": {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]},
    "anthropic": {
        "type": "object",
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "properties": {"type": _TEXT, "message": _TEXT},
                "required": ["type", "message"],
            },
        },
        "required": ["type", "error"],
    },
}
"""How each family of surfaces writes an error."""


def describe(app: FastAPI, version: str) -> dict[str, Any]:
    """Return the document of an application whose routes are all there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of ids that are given anew below
        document = get_openapi(title="Graft runtime", version=version, routes=app.routes)
    schemas: dict[str, Any] = {f"{family}_error": dict(each) for family, each in ERRORS.items()}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            operation["operationId"] = re.sub(r"\W+", "_", f"{method}{path}").strip("_")
            operation["responses"] = _responses(path, method)
            if method == "post" and path in BODIES:
                operation["requestBody"] = _body(path, schemas)
    document["components"] = {"schemas": schemas}
    return document


def _body(path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return what a path takes, and put the models it is made of among the schemas."""
    models = [_schema(model, schemas) for model in BODIES[path]]
    schema = models[0] if len(models) == 1 else {"anyOf": models}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    template = "#/components/schemas/{model}"
    found = model.model_json_schema(ref_template=template)
    schemas |= found.pop("$defs", {})
    if model is GenerateFields:
        _schema(Parameters, schemas)
        found["properties"]["parameters"] = {"$ref": template.format(model=Parameters.__name__)}
    schemas[model.__name__] = found
    return {"$ref": template.format(model=model.__name__)}


def _responses(path: str, method: str) -> dict[str, Any]:
    family = "tgi" if path == "/tokenize" and method == "post" else family_of(path)
    refused: dict[str, Any] = {"$ref": f"#/components/schemas/{family}_error"}
    if path in ("/tokenize", "/invocations"):  # the body's form decides
        refused = {"anyOf": [refused, {"$ref": "#/components/schemas/openai_error"}]}
    error = {"content": {"application/json": {"schema": refused}}}
    return {
        "200": {"description": "The answer", **_answer(path, method)},
        # Triton says no to its probes without a word.
        "4XX": {
            "description": "The request cannot be served",
            **({} if path.startswith("/v2") and method == "get" else error),
        },
        "5XX": {"description": "The server cannot serve it now"},
    }


def _answer(path: str, method: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if path in ANSWERS:
        schema = {"type": "object", "required": list(ANSWERS[path])}
        content["application/json"] = {"schema": schema}
    elif path in shapes.ANSWERS:
        content["application/json"] = {"schema": dict(shapes.ANSWERS[path])}
        if path in shapes.BINARY:
            content["application/octet-stream"] = {"schema": {}}
    elif path in _WITHOUT_CONTENT:
        pass
    elif method == "post" and path in BODIES and not path.endswith("/generate_stream"):
        content["application/json"] = {"schema": {}}
    if method == "post" and path in STREAMS:
        content["text/event-stream"] = {"schema": {"type": "object", "required": ["data"]}}
    return {"content": content} if content else {}
