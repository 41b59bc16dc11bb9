"""From a manifest to a model, or a refusal that names the field, as an API server does with a CRD.

Local mode admits manifests with it; in a cluster it is the second line behind the CRD's schema.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from graft_operator.constants import API_VERSION, KIND_ADAPTER, KIND_SERVICE
from graft_operator.errors import InvalidManifestError
from graft_operator.resources.meta import Manifest
from graft_operator.resources.schema import structural_schema, with_defaults
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter

KINDS: dict[str, type[InferenceService | LoraAdapter]] = {
    KIND_SERVICE: InferenceService,
    KIND_ADAPTER: LoraAdapter,
}
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")

M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], manifest: Mapping[str, Any]) -> M:
    """Read a stored object of one of our kinds; a status that nobody can read counts as empty.

    Raises:
        InvalidManifestError: The spec cannot work as written.
    """
    try:
        return _validated(model, manifest)
    except InvalidManifestError as error:
        if not error.path.startswith("status"):
            raise
        return _validated(model, {k: v for k, v in manifest.items() if k != "status"})


def admit(manifest: Mapping[str, Any], old: Mapping[str, Any] | None) -> Manifest:
    """Check a manifest a user wrote, and its change from what is stored; return it with defaults.

    Raises:
        InvalidManifestError: The first thing that is wrong, with the path of the field.
    """
    kind = manifest.get("kind")
    model = KINDS.get(str(kind))
    if model is None:
        raise InvalidManifestError("kind", f"{kind!r} is not one of {', '.join(KINDS)}")
    if manifest.get("apiVersion") != API_VERSION:
        raise InvalidManifestError(
            "apiVersion", f"{manifest.get('apiVersion')!r} is not {API_VERSION!r}"
        )
    check_metadata(manifest)
    parsed = _validated(model, {k: v for k, v in manifest.items() if k != "status"})
    _check_immutable(manifest, old)
    for path, uri in _uris(parsed):
        if ".." in uri.split("/"):
            raise InvalidManifestError(path, "must not contain '..'")
    return {**manifest, "spec": with_defaults(_spec_schema(model), manifest["spec"])}


@cache
def _spec_schema(model: type[BaseModel]) -> dict[str, Any]:
    spec = _model_in(model.model_fields["spec"].annotation)
    return structural_schema(spec) if spec is not None else {}


def check_metadata(manifest: Mapping[str, Any]) -> None:
    """Check that the object can be named.

    Raises:
        InvalidManifestError: No metadata, or a name that is not one.
    """
    metadata = manifest.get("metadata")
    if not isinstance(metadata, Mapping):
        raise InvalidManifestError("metadata", "is missing")
    for field, required in (("name", True), ("namespace", False)):
        value = metadata.get(field)
        if value is None and not required:
            continue
        if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > 253:
            raise InvalidManifestError(
                f"metadata.{field}", f"{value!r} must be lower case letters, digits, '-' and '.'"
            )


def _validated(model: type[M], manifest: Mapping[str, Any]) -> M:
    try:
        text = json.dumps(manifest)
    except (TypeError, ValueError) as error:
        raise InvalidManifestError("", f"not JSON: {error}") from error
    try:
        return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _explained(error, model) from error


def _explained(error: ValidationError, model: type[BaseModel]) -> InvalidManifestError:
    problems = error.errors(include_url=False, include_input=True)
    # An unknown field explains a missing one, so it comes first.
    first = min(problems, key=lambda item: item["type"] != "extra_forbidden")
    path = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return InvalidManifestError(path, "unknown field" + _suggestion(first["loc"], model))
    if first["type"] == "missing":
        return InvalidManifestError(path, "is required")
    return InvalidManifestError(path, first["msg"])


def _path(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _suggestion(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    parent: type[BaseModel] | None = model
    for part in loc[:-1]:
        if parent is None:
            return ""
        if isinstance(part, str):
            parent = _child(parent, part)
    known = [str(field.alias) for field in parent.model_fields.values()] if parent else []
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _child(model: type[BaseModel], alias: str) -> type[BaseModel] | None:
    for field in model.model_fields.values():
        if field.alias == alias:
            return _model_in(field.annotation)
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, tuple):
        found = (_model_in(argument) for argument in get_args(annotation))
        return next((model for model in found if model is not None), None)
    return None


def _check_immutable(manifest: Mapping[str, Any], old: Mapping[str, Any] | None) -> None:
    if old is None or manifest["kind"] != KIND_ADAPTER:
        return
    if manifest["spec"]["inferenceServiceRef"] != old["spec"]["inferenceServiceRef"]:
        raise InvalidManifestError(
            "spec.inferenceServiceRef", "is immutable; create a new LoraAdapter"
        )


def _uris(parsed: InferenceService | LoraAdapter) -> tuple[tuple[str, str], ...]:
    if isinstance(parsed, InferenceService):
        return (("spec.model.uri", parsed.spec.model.uri),)
    return (("spec.source.uri", parsed.spec.source.uri),)
