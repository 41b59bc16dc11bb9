"""Fields that describe the output's form, in each surface's spelling, as one constraint.

OpenAI's ``response_format``, vLLM's ``structured_outputs`` and its older ``guided_*``, and the
``grammar`` of Text Generation Inference. Whether a form can be followed is not decided here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from graft_runtime.errors import InvalidRequestError
from graft_runtime.ipc.messages import Sampling
from graft_runtime.sampling.constraint import Constraint, ConstraintKind
from graft_runtime.server.context import Frontend
from graft_runtime.server.processor_fields import check_processors

MAX_CHARS: Final = 256 * 1024
MAX_CHOICES: Final = 4096
KINDS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
"""Of vLLM's ``structured_outputs``; its ``guided_*`` have the first five."""


class Form(NamedTuple):
    """A constraint and the field that asked for it."""

    constraint: Constraint
    param: str


async def constrain(frontend: Frontend, sampling: Sampling, form: Form | None) -> Sampling:
    """Return the sampling once what others must judge has been checked.

    That is the form of the output, whose grammar is put into it, and the arguments of plugins.

    Raises:
        RequestError: The form or the arguments cannot be used, or cannot be checked now.
    """
    if sampling.processors:
        sampling = await check_processors(frontend, sampling)
    if form is None:
        return sampling
    text = await frontend.grammars.check(form.constraint, form.param)
    return msgspec.structs.replace(sampling, grammar=text)


def openai_form(
    response_format: Mapping[str, Any] | None,
    structured_outputs: Mapping[str, Any] | None,
    guided: Mapping[str, Any],
) -> Form | None:
    """Return the form that a request on an OpenAI route asks for.

    Args:
        response_format: OpenAI's field, in TGI's and LoRAX's spellings, too.
        structured_outputs: vLLM's field.
        guided: Its predecessors without their prefix, absent ones left out.

    Raises:
        InvalidRequestError: A field is malformed, or two of them ask for something.
    """
    forms = []
    if response_format is not None:
        forms.append(response_form(response_format, "response_format"))
    if structured_outputs is not None:
        forms.append(_structured(structured_outputs, "structured_outputs", "."))
    if guided.keys() - {"whitespace_pattern"}:
        forms.append(_structured(guided, "guided", "_"))
    asked = [form for form in forms if form is not None]
    if len(asked) > 1:
        message = f"`{asked[0].param}` and `{asked[1].param}` exclude each other"
        raise InvalidRequestError(message, param=asked[1].param)
    return asked[0] if asked else None


def response_form(value: Mapping[str, Any], param: str) -> Form | None:
    """Read a ``response_format`` or a TGI ``grammar``; plain text is no form.

    Raises:
        InvalidRequestError: It is malformed.
    """
    kind = value.get("type")
    if kind == "text":
        return None
    if kind in ("json_object", "json"):
        return _json(_either(value, "schema", "value"), param)
    if kind == "json_schema":
        return _json(_named_schema(value, param), f"{param}.json_schema")
    if kind == "regex":
        return _text("regex", value.get("value"), f"{param}.value")
    if kind == "structural_tag":
        return _structural_tag(value, param)
    message = f"`{param}.type` must be one of text, json_object, json_schema, regex, structural_tag"
    raise InvalidRequestError(message, param=f"{param}.type")


def _named_schema(value: Mapping[str, Any], param: str) -> Any:
    """Return the schema: OpenAI and TGI put it beside a name, LoRAX does not."""
    outer = _either(value, "json_schema", "value")
    schema = outer.get("schema") if isinstance(outer, Mapping) else None
    schema = value.get("schema") if schema is None else schema
    if schema is None:
        message = f"`{param}.json_schema` must have a `schema`"
        raise InvalidRequestError(message, param=f"{param}.json_schema")
    return schema


def _either(value: Mapping[str, Any], first: str, second: str) -> Any:
    found = value.get(first)
    return value.get(second) if found is None else found


def _structured(value: Mapping[str, Any], param: str, joint: str) -> Form | None:
    """Read vLLM's fields: exactly one kind, and options of JSON's."""
    given = {name: each for name, each in value.items() if each is not None and each is not False}
    kinds = [kind for kind in KINDS if kind in given]
    if len(kinds) != 1:
        message = f"`{param}` must have exactly one of {', '.join(KINDS)}"
        raise InvalidRequestError(message, param=param)
    for name in given.keys() - {*KINDS, "whitespace_pattern", "disable_any_whitespace"}:
        if name != "disable_fallback" and not name.startswith("_"):
            message = f"`{param}{joint}{name}` is not supported with this value"
            raise InvalidRequestError(message, param=f"{param}{joint}{name}")
    kind = kinds[0]
    inner = f"{param}{joint}{kind}"
    if kind in ("json", "json_object"):
        form = _json(None if kind == "json_object" else given[kind], inner)
        return Form(_with_blanks(form.constraint, given, param), inner)
    if kind == "choice":
        return _choice(given[kind], inner)
    if kind == "structural_tag":
        return _structural_tag(given[kind], inner)
    return _text("regex" if kind == "regex" else "grammar", given[kind], inner)


def _with_blanks(constraint: Constraint, given: Mapping[str, Any], param: str) -> Constraint:
    pattern = given.get("whitespace_pattern")
    if pattern is not None and not isinstance(pattern, str):
        message = f"`{param}`: the whitespace pattern must be a string"
        raise InvalidRequestError(message, param=param)
    if given.get("disable_any_whitespace") is True:
        pattern = ""
    return msgspec.structs.replace(constraint, whitespace_pattern=pattern)


def _json(schema: Any, param: str) -> Form:
    """Return the form of a schema: an object, its JSON as a string, or None for any object."""
    if schema is None:
        return Form(Constraint(kind="json_object", value=""), param)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            message = f"`{param}` is a string, but not JSON"
            raise InvalidRequestError(message, param=param) from error
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(f"`{param}` must be a JSON schema", param=param)
    return _checked("json_schema", json.dumps(schema, ensure_ascii=False), param)


def _text(kind: ConstraintKind, value: Any, param: str) -> Form:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"`{param}` must be a string, and not empty", param=param)
    return _checked(kind, value, param)


def _choice(value: Any, param: str) -> Form:
    is_list = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not is_list or not 1 <= len(value) <= MAX_CHOICES:
        message = f"`{param}` must be a list of 1 to {MAX_CHOICES} strings"
        raise InvalidRequestError(message, param=param)
    return _checked("choice", json.dumps(value, ensure_ascii=False), param)


def _structural_tag(value: Any, param: str) -> Form:
    """Read the form with ``structures`` and ``triggers``; as a string it is that as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            message = f"`{param}` is a string, but not JSON"
            raise InvalidRequestError(message, param=param) from error
    structures = value.get("structures") if isinstance(value, Mapping) else None
    triggers = value.get("triggers") if isinstance(value, Mapping) else None
    if not _is_objects(structures) or not _is_texts(triggers):
        message = f"`{param}` must have lists `structures` (objects) and `triggers` (strings)"
        raise InvalidRequestError(message, param=param)
    tag = {"structures": structures, "triggers": triggers}
    return _checked("structural_tag", json.dumps(tag, ensure_ascii=False), param)


def _is_objects(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict)
            and isinstance(each.get("begin"), str)
            and isinstance(each.get("end"), str)
            for each in value
        )
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _checked(kind: ConstraintKind, value: str, param: str) -> Form:
    if len(value) > MAX_CHARS:
        message = f"`{param}` is longer than {MAX_CHARS} characters"
        raise InvalidRequestError(message, param=param)
    return Form(Constraint(kind=kind, value=value), param)
