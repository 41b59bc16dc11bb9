"""Time the whole runtime: a random 0.25B Llama in bfloat16 behind the real server.

    python -m bench.engine                      # tokens/s at 1, 8, 32 and 128 requests
    python -m bench.engine --host               # host time per step: 256 requests, 64 adapters

Each request has 128 tokens of prompt and gets 128, greedy; all come over HTTP as streams. The
second form uses a small model, since what it measures does not depend on the model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.checkpoints import LLAMA, SMALL, VOCAB, make_adapter, make_checkpoint
from bench.engine_parts import Machine, Server, measure_machine, serve

PROMPT = NEW = 128
HOST_REQUESTS, HOST_ADAPTERS, HOST_NEW = 256, 64, 256
LOOK_SECONDS = 0.5
HISTOGRAM = 'graft_engine_host_seconds_bucket{le="'
STEPS = "graft_engine_host_seconds_count"


@dataclass
class Run:
    """When the tokens of some requests came, in seconds."""

    begin: float = field(default_factory=time.perf_counter)
    firsts: list[float] = field(default_factory=list)
    lasts: list[float] = field(default_factory=list)
    tokens: int = 0

    @property
    def rate(self) -> float:
        """Output tokens per second, prompts included in the time."""
        return self.tokens / (max(self.lasts) - self.begin)

    @property
    def decode_rate(self) -> float:
        """Output tokens per second, from the last first token on."""
        span = max(self.lasts) - max(self.firsts)
        return (self.tokens - len(self.firsts)) / span

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second, until the last first token."""
        return len(self.firsts) * PROMPT / (max(self.firsts) - self.begin)


async def ask(server: Server, run: Run, body: dict[str, Any]) -> None:
    """Stream one completion and note when its tokens came."""
    has_begun = False
    body = {"temperature": 0, "ignore_eos": True, "stream": True} | body
    body["stream_options"] = {"include_usage": True}
    async with server.client.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit((await answer.aread()).decode())
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["choices"] and not has_begun:
                has_begun = True
                run.firsts.append(time.perf_counter())
            if event.get("usage"):
                run.tokens += event["usage"]["completion_tokens"]
    run.lasts.append(time.perf_counter())


async def generate(server: Server, bodies: list[dict[str, Any]], run: Run | None = None) -> Run:
    """Run requests at once."""
    run = run or Run()
    await asyncio.gather(*(ask(server, run, body) for body in bodies))
    return run


def prompts(chance: random.Random, count: int) -> list[list[int]]:
    """Return prompts of random tokens, no two of which begin alike."""
    return [[chance.randrange(1, VOCAB) for _ in range(PROMPT)] for _ in range(count)]


async def rates(arguments: argparse.Namespace, machine: Machine, folder: Path) -> None:
    """Print tokens per second for each number of requests."""
    model = make_checkpoint(folder / "model", LLAMA)
    chance = random.Random(0)
    most = max(arguments.requests)
    engine = {
        "maxRunning": most,
        "maxBatchTokens": max(512, 2 * most),
        "blockSize": 32,
        "kvBytes": (most + 8) * (PROMPT + NEW + 32) * 2**14,
        "threads": arguments.threads,
    }
    async with serve(model, engine) as server:
        await generate(server, [{"prompt": prompts(chance, 1)[0], "max_tokens": 16}])
        for count in arguments.requests:
            runs: list[Run] = []
            before = await server.metrics()
            for _ in range(arguments.repeats):
                asked = prompts(chance, count)
                bodies = [{"prompt": each, "max_tokens": NEW} for each in asked]
                runs.append(await generate(server, bodies))
            host = host_times(before, await server.metrics())
            runs.sort(key=lambda run: run.decode_rate)
            run = runs[len(runs) // 2]
            bound = machine.best_rate(LLAMA, count, PROMPT + NEW // 2)
            print(
                f"{count:4} requests: decode {run.decode_rate:7.1f} tok/s"
                f" ({100 * run.decode_rate / bound:.0f} % of {bound:.0f}),"
                f" best {runs[-1].decode_rate:.1f}, whole {run.rate:.1f},"
                f" prefill {run.prefill_rate:.0f}; host per step {host}",
                flush=True,
            )


async def host_case(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the host time per step with many requests, adapters and ways of sampling.

    First of the steps while all requests decode, then of all: in the first half of these, prompts
    come, and in the last requests end. It is processor time; what the loop waited for a core while
    others had them is told beside it.
    """
    model = make_checkpoint(folder / "model", SMALL)
    adapters = {
        f"a{number}": make_adapter(folder / f"a{number}", SMALL, number)
        for number in range(HOST_ADAPTERS)
    }
    engine = {
        "maxRunning": HOST_REQUESTS,
        "maxBatchTokens": 2048,
        "blockSize": 32,
        "kvBytes": 2**28,
        "threads": arguments.threads,
        "maxWaiting": HOST_REQUESTS,
    }
    chance = random.Random(0)
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 40, "seed": 7},
        {"temperature": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.3},
        {"temperature": 0.9, "min_p": 0.05},
    ]
    grammar = {"guided_regex": f"[a-z]{{{HOST_NEW * 2}}}", "temperature": 0.9}
    bodies = [
        (grammar if number % 10 == 9 else ways[number % len(ways)])
        | {"prompt": prompt, "max_tokens": HOST_NEW, "model": f"a{number % HOST_ADAPTERS}"}
        for number, prompt in enumerate(prompts(chance, HOST_REQUESTS))
    ]
    async with serve(model, engine, pages=HOST_ADAPTERS) as server:
        begin = time.perf_counter()
        await server.load_adapters(adapters)
        print(f"{HOST_ADAPTERS} adapters loaded in {time.perf_counter() - begin:.1f} s", flush=True)
        await generate(server, bodies[:16])
        for _ in range(arguments.repeats):
            run = Run()
            before, waited = await server.metrics(), server.engine_wait_seconds()
            running = asyncio.create_task(generate(server, bodies, run))
            full = await looks_while_full(server, run, running)
            await running
            after, waited = await server.metrics(), server.engine_wait_seconds() - waited
            steps = after[STEPS] - before.get(STEPS, 0.0)
            print(
                f"{HOST_REQUESTS} requests over {HOST_ADAPTERS} adapters: {run.rate:.0f} tok/s\n"
                f"  host per step while all decode ({full[1][STEPS] - full[0][STEPS]:.0f} steps):"
                f" {host_times(*full)}\n"
                f"  of all {steps:.0f} steps: {host_times(before, after)};"
                f" beside that it waited {1e3 * waited / steps:.2f} ms for a core on average",
                flush=True,
            )


async def looks_while_full(
    server: Server, run: Run, running: asyncio.Task[Run]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the first and the last look at the metrics while every request decodes."""
    looks = []
    while not running.done():
        await asyncio.sleep(LOOK_SECONDS)
        all_have_begun = len(run.firsts) == HOST_REQUESTS
        look = await server.metrics()
        if all_have_begun and not run.lasts:
            looks.append(look)
    return looks[0], looks[-1]


def host_times(before: dict[str, float], after: dict[str, float]) -> str:
    """Return the median and the 99th percentile between two looks at the server's histogram."""
    counts = [
        (float(name.removeprefix(HISTOGRAM).split('"')[0]), after[name] - before.get(name, 0.0))
        for name in after
        if name.startswith(HISTOGRAM)
    ]
    counts.sort()
    return ", ".join(
        f"p{share} {1e3 * _quantile(counts, share / 100):.2f} ms" for share in (50, 99)
    )


def _quantile(counts: list[tuple[float, float]], share: float) -> float:
    wanted = share * counts[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            part = (wanted - below) / max(count - below, 1.0)
            return bound if bound == float("inf") else lower + part * (bound - lower)
        lower, below = bound, count
    return lower


def main() -> None:
    """Measure the machine, then what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--host", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the server would stay behind
    with tempfile.TemporaryDirectory() as folder:
        if arguments.host:
            asyncio.run(host_case(arguments, Path(folder)))
            return
        machine = measure_machine(arguments.threads)
        print(
            f"{arguments.threads} threads: memory {machine.read_bytes_per_second / 1e9:.1f} GB/s,"
            f" bf16 {machine.flops / 1e9:.0f} GFLOP/s",
            flush=True,
        )
        asyncio.run(rates(arguments, machine, Path(folder)))


if __name__ == "__main__":
    main()
