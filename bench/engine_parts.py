"""What `engine.py` measures with: a model of random weights, a real server, and the machine.

The checkpoint's tokenizer has one token per byte and fillers, so that every token has a text and
grammars can be followed.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional

from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import AdapterEntry, build_shards, shard_key
from graft_protocol.digest import FileRecord, manifest_digest
from graft_protocol.naming import ENV_POD_NAME, ENV_POD_ROOT, PodPaths
from graft_protocol.revisions import pinned_revision
from graft_runtime.layers.lora.layout import all_groups
from graft_runtime.models.arch import load_arch
from graft_runtime.sources.cache_entry import file_sha256

VOCAB = 32_000
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
SMALL = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""For what depends on the number of requests and not on the model."""
START_SECONDS = 600.0


def make_checkpoint(folder: Path, config: dict[str, Any]) -> str:
    """Write random weights, a config and a tokenizer; return where they are."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    arch = load_arch(folder)
    shapes = {"model.embed_tokens": (arch.vocab_size, arch.hidden_size)}
    for layer, group in all_groups(arch):
        for part in group.slices:
            shapes[arch.module_path(layer, part.module)] = (part.out_features, group.in_features)
    tensors = {
        f"{name}.weight": (torch.randn(shape) * shape[1] ** -0.5).bfloat16()
        for name, shape in shapes.items()
    }
    norms = ["model.norm"]
    for layer in range(arch.num_layers):
        prefix = f"model.layers.{layer}"
        norms += [f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"]
    tensors |= {f"{name}.weight": torch.ones(arch.hidden_size).bfloat16() for name in norms}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(folder)
    return folder.resolve().as_uri()


def _write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = [f"z{number}z" for number in range(VOCAB - len(alphabet) - 1)]
    vocab = {token: id for id, token in enumerate(["</s>", *alphabet, *fillers])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )


def make_adapter(folder: Path, config: dict[str, Any], seed: int) -> Path:
    """Write a rank-8 adapter of the attention's query and value projections."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    value_width = hidden // heads * config["num_key_value_heads"]
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, width in (("q_proj", hidden), ("v_proj", value_width)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(8, hidden, generator=generator) * 0.05
            tensors[f"{name}.lora_B.weight"] = torch.randn(width, 8, generator=generator) * 0.05
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16}
    settings["target_modules"] = ["q_proj", "v_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@dataclass
class Server:
    """A running pod."""

    url: str
    client: httpx.AsyncClient
    adapters_dir: Path
    pid: int

    async def metrics(self) -> dict[str, float]:
        """Return all samples by name and labels."""
        page = (await self.client.get(f"{self.url}/metrics")).text
        lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    async def desire(self, entries: Iterable[AdapterEntry]) -> None:
        """Change the set of adapters, as the kubelet would show the change."""
        version = Path(tempfile.mkdtemp(prefix="..v", dir=self.adapters_dir))
        for shard in build_shards(entries):
            (version / shard_key(shard.index)).write_text(shard.to_json())
            link = self.adapters_dir / shard_key(shard.index)
            if not link.is_symlink():
                link.symlink_to(Path("..data") / link.name)
        swap = self.adapters_dir / "..next"
        swap.symlink_to(version.name)
        swap.replace(self.adapters_dir / "..data")

    async def serves_exactly(self, names: AbstractSet[str], pause_seconds: float = 0.2) -> None:
        """Wait until these adapters, and no others, are among the models."""
        served: set[str] | None = None
        while served != names:
            await asyncio.sleep(pause_seconds if served is not None else 0)
            models = (await self.client.get(f"{self.url}/v1/models")).json()
            served = {model["id"] for model in models["data"] if model["parent"] is not None}
            served = {name for name in served if "/" not in name}

    async def load_adapters(self, folders: dict[str, Path]) -> None:
        """Desire adapters and wait until each is among the models."""
        await self.desire(entry(name, folder) for name, folder in folders.items())
        await self.serves_exactly(folders.keys())


@asynccontextmanager
async def serve(
    model_uri: str, engine: dict[str, Any], pages: int = 1, cache: Path | None = None
) -> AsyncIterator[Server]:
    """Start `graft-runtime serve` and wait until it is ready; end it whatever happens.

    A cache that is given outlives the server: the next one finds adapters there.
    """
    root = Path(tempfile.mkdtemp(prefix="graft-"))
    ports = _free_ports(3)
    config = RuntimeConfig.model_validate(
        {
            "service": {"namespace": "default", "name": "bench"},
            "model": {"servedName": "base", "uri": model_uri},
            "engine": engine,
            "adapters": {"devicePages": pages},
            "server": {
                "host": "127.0.0.1",
                **dict(zip(("port", "grpcPort", "internalPort"), ports, strict=True)),
            },
        }
    )
    paths = PodPaths(root)
    for folder in (paths.config_file.parent, paths.adapters_dir, paths.token_file.parent):
        folder.mkdir(parents=True)
    if cache is not None:
        paths.cache_dir.parent.mkdir(parents=True)
        paths.cache_dir.symlink_to(cache)
    paths.config_file.write_text(config.to_json())
    paths.token_file.write_text("bench")
    environment = os.environ | {ENV_POD_ROOT: str(root), ENV_POD_NAME: "bench-0"}
    command = (sys.executable, "-m", "graft_runtime.cli", "serve")
    log = root / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=output)
    # A kept connection may be closed by the server just when a request is sent on it.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    try:
        async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as client:  # noqa: S113 - as long as it takes
            server = Server(f"http://127.0.0.1:{ports[0]}", client, paths.adapters_dir, process.pid)
            await _until_ready(server, process, log)
            yield server
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if sys.exc_info()[0] is not SystemExit:
            shutil.rmtree(root, ignore_errors=True)


async def _until_ready(server: Server, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if process.returncode is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not start: {log}")
        try:
            if (await server.client.get(f"{server.url}/startupz")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.2)


def entry(name: str, folder: Path) -> AdapterEntry:
    """Return the pinned entry of an adapter in a folder."""
    files = [
        FileRecord(file.name, file.stat().st_size, file_sha256(file) or "")
        for file in folder.iterdir()
    ]
    digest = manifest_digest(files)
    revision = pinned_revision("default", name, digest)
    uri = folder.resolve().as_uri()
    return AdapterEntry(revision=revision, served_name=name, uri=uri, digest=digest)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass(frozen=True)
class Machine:
    """What this machine can do at best, measured."""

    read_bytes_per_second: float
    flops: float
    """bfloat16 multiplications and additions per second."""

    def best_rate(self, config: dict[str, Any], requests: int, context: int) -> float:
        """Return the tokens per second that no program could exceed.

        Every weight is read once per step and every key and value of each request; every weight is
        multiplied once per request.
        """
        hidden, ffn = config["hidden_size"], config["intermediate_size"]
        kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
        layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
        weights = config["num_hidden_layers"] * layer + hidden * config["vocab_size"]
        cached = 2 * 2 * kv * config["num_hidden_layers"] * context * requests
        read_seconds = (2 * weights + cached) / self.read_bytes_per_second
        return float(requests / max(read_seconds, 2 * weights * requests / self.flops))


def measure_machine(threads: int) -> Machine:
    """Measure how fast memory is read, by the C library's search for a byte, and bf16 products."""
    size = 256 * 2**20
    parts = [ctypes.create_string_buffer(size) for _ in range(threads)]
    search = ctypes.CDLL(None).memchr
    search.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

    def read(part: Any) -> None:
        search(ctypes.addressof(part), 1, size)

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            begin = time.perf_counter()
            list(pool.map(read, parts))
            best = min(best, time.perf_counter() - begin)
    torch.set_num_threads(threads)
    side = 2048
    left, right = torch.randn(side, side).bfloat16(), torch.randn(side, side).bfloat16()
    fastest = float("inf")
    for _ in range(8):
        begin = time.perf_counter()
        functional.linear(left, right)
        fastest = min(fastest, time.perf_counter() - begin)
    return Machine(threads * size / best, 2 * side**3 / fastest)
