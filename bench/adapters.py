"""Time what adapters cost: while they load, while many serve, from apply to token, and over time.

    python -m bench.adapters stall [--pairs 5] [--loads 50]
    python -m bench.adapters zipf [--adapters 0 1 8 64 1000] [--slots 8 16 64] [--repeats 2]
    python -m bench.adapters apply [--count 30]
    python -m bench.adapters memory [--cycles 5000]

`stall`: the gaps between the tokens of 8 streams of the base model while cold adapters load one
after another, against the same streams without loads, in interleaved pairs. `zipf`: tokens per
second with so many adapters, asked for by Zipf's law, on so many places of the device. Both with a
random 0.25B Llama in bfloat16 and rank-16 adapters of all linear layers, 9.3 MB each. `apply`: in
local mode, from a changed manifest to the first token that only the new weights give. `memory`:
what load and unload leave behind in the processes of a pod.

Shape legend: R rank, I/O features in/out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file

from bench.checkpoints import LLAMA, SMALL, VOCAB, make_adapter, make_checkpoint
from bench.engine_parts import Server, entry, serve
from bench.figures import percentile, show
from bench.marked_adapters import PROMPT_IDS, Folder, MarkedModel, Published, Publisher
from e2e.client import Client
from graft_runtime.layers.lora.layout import all_groups
from graft_runtime.models.arch import load_arch

RANK = 16
PROMPT = 128
NUM_STREAMS = 8
STALL_TOKENS, SETTLED_TOKENS = 2500, 8
"""How long the streams could be, and how many tokens each has before anything is measured."""
ZIPF_REQUESTS, ZIPF_RUNNING, ZIPF_EXPONENT = 64, 32, 1.0
ZIPF_PROMPT, ZIPF_NEW = 32, 64
ZIPF_CACHE_BYTES = 2**35
"""A thousand adapters, each once as it came and once as the device wants it, are 19 GB."""
BATCH = 50
"""Adapters that are loaded and unloaded together in a cycle of `memory`."""
BIN = Path(sys.executable).parent
DEADLINE_SECONDS = 60.0


def make_adapters(folder: Path, model: Path, count: int, first: int = 0) -> dict[str, Path]:
    """Write adapters that differ in content and share the bytes of their weights on disk."""
    weights = folder / "weights.safetensors"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_all_linear(model), weights)
    made = {}
    for number in range(first, first + count):
        place = made[f"a{number}"] = folder / f"a{number}"
        place.mkdir()
        os.link(weights, place / "adapter_model.safetensors")
        modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            # Another alpha is another adapter, in its digest and in what it answers.
            "lora_alpha": RANK + number / 1000,
            "target_modules": modules,
        }
        (place / "adapter_config.json").write_text(json.dumps(config))
    return made


def _all_linear(model: Path) -> dict[str, torch.Tensor]:
    arch = load_arch(model)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, group in all_groups(arch):
        for part in group.slices:
            if part.module == "lm_head":
                continue
            name = f"base_model.model.{arch.module_path(layer, part.module)}"
            a_RI = torch.randn(RANK, group.in_features, generator=generator) * 0.02
            b_OR = torch.randn(part.out_features, RANK, generator=generator) * 0.02
            tensors[f"{name}.lora_A.weight"] = a_RI.bfloat16()
            tensors[f"{name}.lora_B.weight"] = b_OR.bfloat16()
    return tensors


def forget(folder: Path) -> None:
    """Have the kernel drop a folder's files from its cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


async def stream(server: Server, body: dict[str, Any], gaps: list[float]) -> int:
    """Stream a completion, note the seconds between its tokens, and return how many there were."""
    body = {"temperature": 0, "ignore_eos": True, "stream": True} | body
    last, count = None, 0
    async with server.client.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.perf_counter()
            if last is not None:
                gaps.append(now - last)
            last, count = now, count + 1
    return count


def prompt(chance: random.Random, length: int = PROMPT) -> list[int]:
    """Return a prompt of random tokens."""
    return [chance.randrange(1, VOCAB) for _ in range(length)]


async def stall(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the gaps between tokens with and without loads."""
    model = make_checkpoint(folder / "model", LLAMA)
    chance = random.Random(0)
    engine = {"maxRunning": 16, "maxBatchTokens": 512, "blockSize": 32, "kvBytes": 2**29}
    async with serve(model, engine | {"threads": arguments.threads}, pages=8) as server:
        differences: list[float] = []
        without: list[float] = []
        for pair in range(arguments.pairs):
            first = pair * arguments.loads
            adapters = make_adapters(folder / "a", folder / "model", arguments.loads, first)
            with_loads, seconds = await _gaps(server, chance, adapters)
            without, _ = await _gaps(server, chance, {}, seconds)
            differences.append(percentile(with_loads, 0.99) - percentile(without, 0.99))
            for what, gaps in (("loads", with_loads), ("none", without)):
                show(f"pair {pair}, {what}: seconds between tokens", gaps)
        step = statistics.median(without)
        spread = f"{1e3 * min(differences):.1f} to {1e3 * max(differences):.1f}"
        print(
            f"p99 with {arguments.loads} loads less p99 without: median"
            f" {1e3 * statistics.median(differences):.1f} ms ({spread}); one step"
            f" {1e3 * step:.1f} ms",
            flush=True,
        )


async def _gaps(
    server: Server, chance: random.Random, adapters: dict[str, Path], seconds: float = 0.0
) -> tuple[list[float], float]:
    """Keep streams going while adapters load one after another, or for so many seconds.

    Returns:
        The gaps between tokens while all streams were decoding, and how many seconds it took.
    """
    gaps: list[float] = []
    body = {"max_tokens": STALL_TOKENS}
    users = [
        asyncio.create_task(stream(server, body | {"prompt": prompt(chance)}, gaps))
        for _ in range(NUM_STREAMS)
    ]
    while len(gaps) < SETTLED_TOKENS * NUM_STREAMS:  # noqa: ASYNC110 - streams tell nobody
        await asyncio.sleep(0.05)
    gaps.clear()
    began = time.perf_counter()
    if adapters:
        await _load_one_by_one(server, chance, adapters)
    else:
        await asyncio.sleep(seconds)
    found, seconds = list(gaps), time.perf_counter() - began
    for user in users:
        user.cancel()
    await asyncio.gather(*users, return_exceptions=True)
    return found, seconds


async def _load_one_by_one(
    server: Server, chance: random.Random, adapters: dict[str, Path]
) -> None:
    entries = []
    for name, place in adapters.items():
        await asyncio.to_thread(forget, place)
        entries.append(entry(name, place))
        await server.desire(entries)
        while True:
            body = {"model": name, "prompt": prompt(chance)[:8], "max_tokens": 1}
            answer = await server.client.post(f"{server.url}/v1/completions", json=body)
            if answer.status_code == 200:
                break
            await asyncio.sleep(0.05)


async def zipf(arguments: argparse.Namespace, folder: Path) -> None:
    """Print tokens per second for each number of adapters and of places."""
    model = make_checkpoint(folder / "model", LLAMA)
    adapters = make_adapters(folder / "a", folder / "model", max(arguments.adapters))
    engine = {"maxRunning": ZIPF_RUNNING, "maxBatchTokens": 512, "blockSize": 32}
    engine |= {"kvBytes": 2**29, "threads": arguments.threads, "maxWaiting": ZIPF_REQUESTS}
    (folder / "cache").mkdir()
    for slots in arguments.slots:
        async with serve(
            model, engine, pages=slots, cache=folder / "cache", cache_bytes=ZIPF_CACHE_BYTES
        ) as server:
            for count in arguments.adapters:
                some = dict(list(adapters.items())[:count])
                await server.load_adapters(some)
                seeds = range(arguments.repeats)
                rates = [await _zipf_rate(server, list(some), seed) for seed in seeds]
                print(
                    f"{slots:3} places, {count:5} adapters: {statistics.median(rates):7.1f} tok/s"
                    f" ({min(rates):.1f} to {max(rates):.1f})",
                    flush=True,
                )


async def _zipf_rate(server: Server, names: Sequence[str], seed: int) -> float:
    chance = random.Random(seed)
    weights = [1 / (rank + 1) ** ZIPF_EXPONENT for rank in range(len(names))]
    models = chance.choices(names, weights, k=ZIPF_REQUESTS) if names else ["base"] * ZIPF_REQUESTS
    room, tokens = asyncio.Semaphore(ZIPF_RUNNING), 0

    async def one(name: str) -> None:
        nonlocal tokens
        async with room:
            asked = prompt(chance, ZIPF_PROMPT)
            body = {"model": name, "prompt": asked, "max_tokens": ZIPF_NEW}
            got = await stream(server, body, [])
        tokens += got

    began = time.perf_counter()
    await asyncio.gather(*map(one, models))
    return tokens / (time.perf_counter() - began)


def apply(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the seconds from a changed manifest to the new weights' first token."""
    model = MarkedModel()
    model.save(folder / "model")
    manifests = folder / "up"
    manifests.mkdir()
    publisher = Publisher(model, Folder(folder / "store"))
    _write(manifests, "service", _service((folder / "model").as_uri(), arguments.threads))
    with (folder / "log").open("wb") as log:
        up = subprocess.Popen([BIN / "graft", "up", manifests], stdout=log, stderr=log)
    try:
        client = Client(_url(manifests))
        new: list[float] = []
        changed: list[float] = []
        for number in range(arguments.count):
            for series in (new, changed):
                published = publisher.publish()
                series.append(_to_token(manifests, client, f"marked-{number}", published))
        show("seconds from manifest to first token, new adapter", new)
        show("seconds from manifest to first token, changed adapter", changed)
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(60)


def _service(uri: str, threads: int) -> dict[str, Any]:
    engine = {"threads": threads, "kvBytes": 2**26}
    spec = {"model": {"uri": uri}, "engine": engine}
    return {"kind": "InferenceService", "metadata": {"name": "base"}, "spec": spec}


def _write(manifests: Path, name: str, document: dict[str, Any]) -> None:
    text = json.dumps({"apiVersion": "serving.graft.dev/v1alpha1", **document})
    unfinished = manifests / f".{name}"
    unfinished.write_text(text)
    unfinished.rename(manifests / f"{name}.yaml")


def _url(manifests: Path) -> str:
    deadline = time.monotonic() + 4 * DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with suppress(subprocess.CalledProcessError, ValueError, KeyError, httpx.TransportError):
            program = str(BIN / "graft")
            command = [program, "get", "InferenceService/base", str(manifests), "-o", "json"]
            status = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
            url = str(status["status"]["url"])
            if url and Client(url).ask("base", max_tokens=1).is_ok:
                return url
        time.sleep(0.5)
    raise TimeoutError("the service did not come up")


def _to_token(manifests: Path, client: Client, name: str, published: Published) -> float:
    spec = {
        "inferenceServiceRef": {"name": "base"},
        "source": {"uri": published.uri, "digest": published.digest},
    }
    began = time.monotonic()
    _write(manifests, name, {"kind": "LoraAdapter", "metadata": {"name": name}, "spec": spec})
    while time.monotonic() - began < DEADLINE_SECONDS:
        with suppress(httpx.HTTPStatusError):  # not known yet
            first = next(client.stream(name, max_tokens=1, prompt=list(PROMPT_IDS)), "")
            if first.strip() == published.token.strip():
                return time.monotonic() - began
    raise TimeoutError(f"{name} did not answer {published.token!r}")


async def memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Print what a pod's processes hold before and after many loads and unloads."""
    model = make_checkpoint(folder / "model", SMALL)
    folders = {f"a{n}": make_adapter(folder / f"a{n}", SMALL, n) for n in range(2 * BATCH)}
    entries = [entry(name, place) for name, place in folders.items()]
    halves = entries[:BATCH], entries[BATCH:]
    engine = {"maxRunning": 16, "kvBytes": 2**26, "threads": arguments.threads}
    async with serve(model, engine, pages=BATCH) as server:
        rounds = arguments.cycles // BATCH
        warm_up = max(4, rounds // 10)
        before = {}
        for number in range(warm_up + rounds):
            if number == warm_up:
                before = _held(server.pid)
            half = halves[number % 2]
            await server.desire(half)
            await server.serves_exactly({one.served_name for one in half}, 0.02)
        after = _held(server.pid)
    for name, figures in after.items():
        was = before[name]
        print(
            f"{name}: {was[0]:.1f} -> {figures[0]:.1f} MiB, files {was[1]} -> {figures[1]}, threads"
            f" {was[2]} -> {figures[2]}, over {rounds * BATCH} loads and unloads",
            flush=True,
        )


def _held(pid: int) -> dict[str, tuple[float, int, int]]:
    """Return MiB, open files and threads of a pod's processes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = {}
    for each in (str(pid), *children):
        place = Path("/proc", each)
        words = (place / "cmdline").read_bytes().decode().split("\0")
        role = next((word for word in ("engine", "loader") if word in words), "server")
        fields = dict(
            line.split(":\t", 1)
            for line in (place / "status").read_text().splitlines()
            if ":\t" in line
        )
        rss = int(fields["VmRSS"].split()[0]) / 1024
        found[role] = rss, len(list((place / "fd").iterdir())), int(fields["Threads"])
    return found


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("stall", "zipf", "apply", "memory"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--loads", type=int, default=50)
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 8, 64, 1000])
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--cycles", type=int, default=5000)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # or the server would stay behind
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.what == "apply":
            apply(arguments, folder)
        else:
            asyncio.run(
                {"stall": stall, "zipf": zipf, "memory": memory}[arguments.what](arguments, folder)
            )


if __name__ == "__main__":
    main()
