"""Requests with grammars in the engine: their outputs follow them, and the others never notice."""

import json
import random
import re
from pathlib import Path

import jsonschema
import pytest

from graft_runtime.sampling.constraint import Constraint, ConstraintKind, grammar_text
from graft_runtime.sampling.grammar import Vocabulary
from tests.support.bigram import BigramEngine, bigram_engine
from tests.support.grammars import eos_id, toy

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def text_of(kind: ConstraintKind, value: object) -> str:
    written = value if isinstance(value, str) else json.dumps(value)
    return grammar_text(Constraint(kind=kind, value=written))


GRAMMARS = {
    "schema": text_of("json_schema", SCHEMA),
    "regex": text_of("regex", "[a-z]{3,9}-[0-9]{2}"),
    "choice": text_of("choice", ["yes", "no", "perhaps"]),
}


def is_right(name: str, text: str) -> bool:
    if name == "schema":
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    if name == "regex":
        return re.fullmatch("[a-z]{3,9}-[0-9]{2}", text) is not None
    return text in {"yes", "no", "perhaps"}


def start(num_blocks: int = 256) -> BigramEngine:
    vocabulary, tokenizer = toy()
    return bigram_engine(
        tokenizer.vocab_size, frozenset({eos_id()}), vocabulary=vocabulary, num_blocks=num_blocks
    )


def written(run: BigramEngine, name: str) -> str:
    return toy()[1].decode(run.tokens(name), skip_special_tokens=True)


def submit_all(run: BigramEngine, *, grammars: bool = True) -> list[tuple[str, str | None]]:
    """Send requests of which a half has no grammar; return their names and what they follow."""
    chance = random.Random(4)
    asked: list[tuple[str, str | None]] = []
    for number in range(24):
        follows = [None, "schema", None, "regex", None, "choice"][number % 6]
        prompt = [chance.randrange(3, 300) for _ in range(chance.choice([1, 9, 30]))]
        if grammars or follows is None:
            text = None if follows is None else GRAMMARS[follows]
            temperature = 0.0 if number % 4 == 0 else 1.0
            run.submit(
                f"r{number}", prompt, grammar=text, seed=number, temperature=temperature,
                max_tokens=200 if follows else 40,
            )  # fmt: skip
            asked.append((f"r{number}", follows))
        if chance.random() < 0.5:
            run.step()
    run.finish()
    return asked


def test_every_output_follows_its_grammar_in_a_mixed_batch() -> None:
    run = start()
    for name, follows in submit_all(run):
        if follows is not None:
            assert run.ending(name).finish_reason == "stop", name
            assert is_right(follows, written(run, name))


def test_requests_without_grammar_get_what_they_get_alone() -> None:
    mixed, plain = start(), start()
    submit_all(mixed)
    submit_all(plain, grammars=False)
    assert plain.outputs
    for name in plain.outputs:
        assert mixed.tokens(name) == plain.tokens(name)


def test_preempted_requests_go_on_where_they_were_in_their_grammar() -> None:
    roomy, tight = start(), start(num_blocks=40)
    asked = submit_all(roomy)
    submit_all(tight)
    assert tight.engine.stats().preemptions > 0
    for name, _ in asked:
        assert tight.tokens(name) == roomy.tokens(name)


def test_an_output_ends_with_its_grammar_and_needs_no_end_token() -> None:
    run = start()
    run.submit("r", [5], grammar=GRAMMARS["choice"], ignore_eos=True, min_tokens=50)
    run.finish()
    assert run.ending("r").finish_reason == "stop"
    assert eos_id() not in run.tokens("r")
    assert written(run, "r") in {"yes", "no", "perhaps"}


def test_min_tokens_holds_the_end_back_where_the_grammar_can_go_on() -> None:
    run = start()
    run.submit("r", [5], grammar=text_of("regex", "[a-z]*"), min_tokens=20, max_tokens=30)
    run.finish()
    tokens = [token for token in run.tokens("r") if token != eos_id()]
    assert len(tokens) >= 20
    assert re.fullmatch("[a-z]*", written(run, "r"))


def test_a_length_limit_ends_an_output_amid_its_grammar() -> None:
    run = start()
    run.submit("r", [5], grammar=text_of("regex", "[a-z]{500}"), max_tokens=4)
    run.finish()
    assert run.ending("r").finish_reason == "length"


def test_several_answers_share_a_grammar_and_differ() -> None:
    run = start()
    for index in range(8):
        run.submit(f"r{index}", [5], grammar=GRAMMARS["regex"], seed=3, sample_index=index)
    run.finish()
    texts = {written(run, f"r{index}") for index in range(8)}
    assert len(texts) > 4
    assert all(is_right("regex", text) for text in texts)


def test_rules_that_contradict_the_grammar_end_the_request_as_impossible() -> None:
    run = start()
    run.submit("free", [5], max_tokens=5, ignore_eos=True)
    run.submit("r", [5], grammar=GRAMMARS["choice"], allowed_token_ids=(300,))
    run.finish()
    assert run.ending("r").is_impossible
    assert len(run.tokens("free")) == 5


def test_a_broken_grammar_ends_its_request_alone() -> None:
    run = start()
    run.submit("free", [5], max_tokens=5, ignore_eos=True)
    run.submit("r", [5], grammar="start: (")
    run.finish()
    assert run.ending("r").is_impossible
    assert len(run.tokens("free")) == 5


def test_without_a_vocabulary_a_grammar_is_refused() -> None:
    run = bigram_engine(384, frozenset({1}))
    run.submit("r", [5], grammar=GRAMMARS["choice"])
    run.finish()
    assert run.ending("r").is_impossible
    assert "tokenizer" in (run.ending("r").error or "")


def test_a_request_can_be_aborted_while_its_grammar_is_compiled() -> None:
    run = start()
    run.submit("r", [5], grammar=GRAMMARS["schema"])
    run.submit("s", [5], grammar=GRAMMARS["schema"])
    run.engine.abort("r")
    run.finish()
    assert run.outputs["r"] == []
    assert run.ending("s").finish_reason is not None


def test_a_second_request_with_the_same_id_is_refused_while_the_first_compiles() -> None:
    run = start()
    run.submit("r", [5], grammar=GRAMMARS["choice"])
    run.submit("r", [5], grammar=GRAMMARS["choice"])
    run.finish()
    assert [output.finish_reason for output in run.outputs["r"]].count("error") == 1


def test_running_requests_go_on_while_a_large_grammar_is_compiled() -> None:
    names = {f"property{number}": {"type": "string"} for number in range(1500)}
    run = start()
    run.submit("free", [5], max_tokens=400, ignore_eos=True)
    run.step()
    run.submit("r", [5], grammar=text_of("json_schema", {"properties": names}), max_tokens=1)
    steps_before = 0
    while not run.outputs["r"]:
        run.step()
        steps_before += 1
    assert steps_before > 1, "the step that took the request waited for its grammar"
    run.finish()


@pytest.fixture(scope="module")
def tiny() -> tuple[Vocabulary, Path]:
    folder = Path(__file__).parents[3] / "examples/models/tiny"
    return Vocabulary((folder / "tokenizer.json").read_text()), folder


def test_a_real_tokenizer_is_read(tiny: tuple[Vocabulary, Path]) -> None:
    state = tiny[0].compile(GRAMMARS["choice"]).start()
    tokens = tiny[0].raw.tokenize_str("perhaps")
    for token in tokens:
        state.advance(token)
    assert state.is_complete
