"""Every output of a JSON schema validates under it, or the schema was refused with a reason."""

import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from jsonschema import Draft202012Validator

from graft_runtime.errors import GrammarError
from tests.support.grammars import accepts, compiled, draw

SUITE = Path(__file__).parents[2] / "data/json_schema_suite"
DRAWS = 4

REFUSED = {
    "additionalProperties": 2, "allOf": 2, "anyOf": 1, "boolean_schema": 2, "contains": 7,
    "defs": 1, "dependentRequired": 4, "dependentSchemas": 4, "dynamicRef": 20, "format": 9,
    "if-then-else": 10, "maxContains": 4, "maxItems": 1, "maxLength": 1, "maxProperties": 1,
    "minContains": 8, "minItems": 1, "minLength": 1, "minProperties": 1, "multipleOf": 1, "not": 9,
    "oneOf": 9, "patternProperties": 3, "propertyNames": 6, "ref": 6, "unevaluatedItems": 27,
    "unevaluatedProperties": 41, "uniqueItems": 6, "vocabulary": 2,
}  # fmt: skip
"""How many of the suite's schemas are refused, by keyword: a list that should only get shorter."""


@cache
def cases(keyword: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((SUITE / f"{keyword}.json").read_text())
    return found


KEYWORDS = sorted(path.stem for path in SUITE.glob("*.json"))


def is_refused(schema: Any) -> bool:
    try:
        compiled("json_schema", json.dumps(schema))
    except GrammarError as error:
        return bool(str(error))
    return False


def drawn(schema: Any, count: int) -> list[Any]:
    """Return values that the schema's grammar has written."""
    texts = [
        draw(compiled("json_schema", json.dumps(schema)), random.Random(n)) for n in range(count)
    ]
    return [json.loads(text) for text in texts if text is not None]


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_the_suites_schemas_give_valid_outputs_or_are_refused(keyword: str) -> None:
    refused = 0
    for case in cases(keyword):
        if is_refused(case["schema"]):
            refused += 1
            continue
        validator = Draft202012Validator(case["schema"])
        values = drawn(case["schema"], DRAWS)
        assert values, case["description"]
        for value in values:
            assert validator.is_valid(value), (case["description"], value)
    assert refused == REFUSED.get(keyword, 0)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_what_the_suite_calls_invalid_is_never_an_output(keyword: str) -> None:
    taken: Counter[bool] = Counter()
    for case in cases(keyword):
        if is_refused(case["schema"]):
            continue
        for test in case["tests"]:
            text = json.dumps(test["data"], ensure_ascii=False, separators=(",", ":"))
            takes = accepts("json_schema", json.dumps(case["schema"]), text)
            assert test["valid"] or not takes, (case["description"], test["description"])
            if test["valid"]:
                taken[takes] += 1
    # Properties come in the schema's order, and control characters escaped: some are not taken.
    assert taken[True] >= taken[False]


SMALL = from_schema({"type": "integer", "minimum": 0, "maximum": 4})
VALUES = from_schema({"type": ["string", "integer", "null", "boolean"], "maxLength": 6})


def form(type_name: str | None, **keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return schemas of a type with any of the keywords."""
    fixed = {} if type_name is None else {"type": st.just(type_name)}
    return st.fixed_dictionaries(fixed, optional=keywords)


SCALARS = st.one_of(
    form("string", minLength=SMALL, maxLength=st.sampled_from([5, 9])),
    form("string", pattern=st.sampled_from(["^a+$", "[0-9]{3}", "x|yz"])),
    # Not dates: that a leap second or a 30th of February is none, no grammar knows.
    form("string", format=st.sampled_from(["uuid", "ipv4", "email", "nonsense"])),
    form("integer", minimum=st.integers(-90, 90), maximum=st.integers(-90, 900)),
    form("integer", maximum=st.just(100), multipleOf=st.sampled_from([1, 3, 10])),
    form("number", exclusiveMinimum=st.sampled_from([-1.5, 0, 2]), maximum=st.just(3.5)),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "integer"]}]),
    st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": VALUES}),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return schemas made of smaller ones."""
    some = st.lists(inner, min_size=1, max_size=3)
    named = st.fixed_dictionaries({}, optional={"a": inner, "b": inner, "c d": inner})
    return st.one_of(
        form("array", items=inner, minItems=SMALL, maxItems=st.sampled_from([4, 5])),
        form("array", items=st.just(False) | inner, prefixItems=some),
        form("array", items=inner, uniqueItems=st.just(True)),
        form(
            "object",
            properties=named,
            required=st.sampled_from([["a"], ["a", "b"], ["e"]]),
            additionalProperties=st.booleans() | inner,
        ),
        form("object", patternProperties=st.fixed_dictionaries({"^k": inner}), properties=named),
        form(None, anyOf=some),
        form(None, oneOf=some),
        st.fixed_dictionaries({"not": inner}),
    )


SCHEMAS = SCALARS | st.recursive(SCALARS, nested, max_leaves=6)


@given(schema=SCHEMAS, seed=st.integers(0, 99))
@settings(max_examples=250, deadline=None, derandomize=True)
def test_drawn_schemas_give_valid_outputs_or_are_refused(schema: Any, seed: int) -> None:
    if is_refused(schema):
        return
    checker = Draft202012Validator.FORMAT_CHECKER
    validator = Draft202012Validator(schema, format_checker=checker)
    text = draw(compiled("json_schema", json.dumps(schema)), random.Random(seed))
    if text is not None:
        value = json.loads(text)
        assert validator.is_valid(value), value


def test_most_drawn_schemas_are_not_refused() -> None:
    """Else the test above would prove nothing."""
    seen: Counter[bool] = Counter()

    @given(schema=SCHEMAS)
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    def count(schema: Any) -> None:
        seen[is_refused(schema)] += 1

    count()
    assert seen[False] > seen[True] > 0
