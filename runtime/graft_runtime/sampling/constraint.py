"""What an output must look like, and the grammar text that says so to the matcher's library.

Knows neither requests nor tokens. The server builds constraints, the grammar checker turns them
into text within limits, and the engine compiles that text.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

import msgspec
from llguidance import LLMatcher, StructTag, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from graft_runtime.errors import GrammarError

ConstraintKind = Literal[
    "json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"
]

WHITESPACE: Final = r"[ ]|\n[ \t]{0,40}"
"""Between the tokens of JSON: a space, or a line break with indentation. It is bounded, because a
model that has lost its way would else write blanks until its length ends it."""
LARGEST_EXACT: Final = 2**53
"""All integers up to here are doubles."""
ASCII_CLASSES: Final = "dw"
r"""``\d`` and ``\w`` mean ASCII, so that what is written matches under every reader's rules."""


class Constraint(msgspec.Struct, frozen=True, kw_only=True):
    """A form of the output, as the client described it."""

    kind: ConstraintKind
    value: str
    """The JSON schema, the choices (a list) and the structural tag as JSON; a regular expression or
    a grammar (Lark, or GBNF as told by its ``::=``) as it is; nothing for "json_object"."""
    whitespace_pattern: str | None = None
    """Regular expression for the blanks between JSON's tokens; None takes `WHITESPACE`, "" none."""


def grammar_text(constraint: Constraint, special_texts: tuple[str, ...] = ()) -> str:
    """Return the library's grammar for a constraint.

    Args:
        constraint: What was asked. It may hold anything.
        special_texts: How the tokenizer writes its control tokens.

    Raises:
        GrammarError: It is malformed. That the text returned is a grammar is not checked.
    """
    try:
        match constraint.kind:
            case "json_schema":
                return _json(constraint.value, constraint.whitespace_pattern)
            case "json_object":
                return _json('{"type": "object"}', constraint.whitespace_pattern)
            case "regex":
                return f"start: /{regex_to_lark(constraint.value, ASCII_CLASSES)}/"
            case "choice":
                return "start: " + " | ".join(map(json.dumps, json.loads(constraint.value)))
            case "structural_tag":
                return _structural_tag(json.loads(constraint.value), special_texts)
            case "grammar":
                return any_to_lark(constraint.value)
    except RecursionError as error:
        raise GrammarError("it is nested too deeply") from error
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        # What the library's converters raise for what they cannot read.
        raise GrammarError(str(error) or "it cannot be read") from error


def _json(schema: str, whitespace: str | None) -> str:
    _refuse_inexact(json.loads(schema))
    pattern = WHITESPACE if whitespace is None else whitespace
    blanks = {"whitespace_pattern": pattern} if pattern else {"whitespace_flexible": False}
    # Options in the schema itself must not make the library pass over what it cannot enforce.
    options: Any = {**blanks, "lenient": False, "coerce_one_of": False}
    return LLMatcher.grammar_from_json_schema(schema, overrides=options)


def _refuse_inexact(root: Any) -> None:
    """Refuse integers that the library, which reads numbers as doubles, would round silently."""
    left = [root]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, int) and abs(value) > LARGEST_EXACT:
            message = (
                f"its number {str(value)[:40]} is beyond {LARGEST_EXACT}, and would be rounded"
            )
            raise GrammarError(message)


def _structural_tag(value: Any, special_texts: tuple[str, ...]) -> str:
    """Return a grammar for free text in which a trigger begins a tag with a schema of its own."""
    triggers = sorted(value["triggers"], key=len, reverse=True)
    tags = []
    for structure in value["structures"]:
        begin = structure["begin"]
        trigger = next((each for each in triggers if begin.startswith(each)), None)
        if trigger is None:
            message = f"no trigger begins {json.dumps(begin)}"
            raise GrammarError(message)
        schema = structure.get("schema", {})
        _refuse_inexact(schema)
        tags.append(StructTag(trigger=trigger, begin=begin, grammar=schema, end=structure["end"]))
    return StructTag.to_grammar(
        tags, assume_special=any(each in special_texts for each in triggers)
    )
