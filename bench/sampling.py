"""What sampling costs: the host's part of a step's plan, grammar masks, and the sampler itself.

    python -m bench.sampling [--rows 256] [--vocab 32000]

A tenth of the rows follows a JSON schema, a quarter is drawn with top-p, an eighth is penalised,
the rest is greedy. Times are medians of some repeats, in milliseconds of this process's computing
time, so that what else runs on the machine matters little. One thread, random logits and a made-up
vocabulary: no model is needed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count, cycle

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from graft_runtime.engine.counts import CountSlots
from graft_runtime.engine.request import Request
from graft_runtime.engine.sampling_plan import SamplingPlanner, build_sampling
from graft_runtime.engine.token_rules import TokenRules
from graft_runtime.ipc.messages import Sampling, Watermark
from graft_runtime.sampling.constraint import Constraint, grammar_text
from graft_runtime.sampling.counts import CountTable
from graft_runtime.sampling.grammar import Vocabulary
from graft_runtime.sampling.sampler import sample
from graft_runtime.sampling.watermark import _green_list

PROMPT_TOKENS = 500
REPEATS = 30
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "age": {"type": "integer"},
    },
    "required": ["name", "tags", "age"],
}


def made_up_tokenizer(vocab: int) -> str:
    """Return a byte-level tokenizer with random words of lower case letters."""
    chance = random.Random(0)
    words = {char: id for id, char in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    while len(words) < vocab:
        words.setdefault("".join(chance.choices("abcdefghijklmnop", k=6)), len(words))
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    return str(tokenizer.to_str())


def parameters(row: int, grammar: str) -> Sampling:
    """Return what one row of the mix asks for."""
    if row % 10 == 0:
        return Sampling(max_tokens=1000, grammar=grammar)
    if row % 4 == 1:
        return Sampling(max_tokens=1000, temperature=0.8, top_p=0.9)
    if row % 8 == 2:
        return Sampling(max_tokens=1000, repetition_penalty=1.1, temperature=0.0)
    return Sampling(max_tokens=1000, temperature=0.0)


def requests(rows: int, vocab: int, vocabulary: Vocabulary) -> list[Request]:
    """Return running requests, those with a schema inside a string."""
    chance, slots = random.Random(1), CountSlots()
    grammar = grammar_text(Constraint(kind="json_schema", value=json.dumps(SCHEMA)))
    compiled = vocabulary.compile(grammar)
    made = []
    for row in range(rows):
        sampling = parameters(row, grammar)
        prompt = [chance.randrange(vocab) for _ in range(PROMPT_TOKENS)]
        rules = TokenRules.of(sampling, prompt, frozenset(), slots)
        request = Request(f"r{row}", prompt, len(prompt), sampling, None, row, rules=rules)
        if sampling.grammar is not None:
            request.grammar = compiled.start()
            for token in vocabulary.raw.tokenize_str('{"name": "'):
                request.grammar.advance(token)
        made.append(request)
    return made


def median_ms(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return statistics.median(times) * 1000


def steps(made: list[Request], vocab: int) -> None:
    """Time a step's plan and its sampling."""
    states = [request.grammar for request in made if request.grammar is not None]
    fill = median_ms(lambda: states[0].vocabulary.fill(states))
    planner, lengths = SamplingPlanner(), np.array([len(request.tokens) for request in made])
    planner.build(made, lengths)  # nobody's tokens are told again
    first = cycle((0, 1))
    changed = median_ms(lambda: planner.build(made[(at := next(first)) :], lengths[at:]))
    kept = median_ms(lambda: planner.build(made, lengths))
    print(f"plan of {len(made)} rows where one comes or goes, masks included: {changed:.3f}")
    print(f"plan of {len(made)} rows that go on, masks included: {kept:.3f}")
    print(f"  of which masks of {len(states)} rows: {fill:.3f}")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(made), vocab, generator=generator) * 4
    table = CountTable(torch.device("cpu"))
    sample(logits, build_sampling(made), table)
    batch = planner.build(made, lengths)
    # The device has counted one token more each time, so they must be one further.
    further = (replace(batch, position_S=batch.position_S + number) for number in count(1))
    print(f"sampling, mixed: {median_ms(lambda: sample(logits, next(further), table), 5):.1f}")
    greedy = build_sampling([one for one in made if one.sampling == parameters(3, "")])
    part = logits[: len(greedy.temperature_S)]
    label = f"sampling, {len(part)} greedy rows"
    print(f"{label}: {median_ms(lambda: sample(part, greedy, table), 5):.1f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=32_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"milliseconds; {options.rows} rows, vocabulary of {options.vocab}")
    serialized = made_up_tokenizer(options.vocab)
    read = median_ms(lambda: Vocabulary(serialized), 1)
    vocabulary = Vocabulary(serialized)
    grammar = grammar_text(Constraint(kind="json_schema", value=json.dumps(SCHEMA)))
    print(f"reading the tokenizer: {read:.0f}")
    print(f"compiling a schema: {median_ms(lambda: vocabulary.compile(grammar)):.3f}")
    steps(requests(options.rows, options.vocab, vocabulary), options.vocab)
    seeds = iter(range(10**6))
    size = int(options.vocab * Watermark().greenlist_ratio)
    green = median_ms(lambda: _green_list(options.vocab, size, next(seeds)))
    print(f"a watermark's list: {green:.3f}")


if __name__ == "__main__":
    main()
