"""What users of vLLM and Text Generation Inference type, as what `graft serve` does.

Three kinds: what is honoured, what changes nothing here (and is said so), and what is refused by
name. Decides from values alone; `serve` acts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import click

Spec = dict[str, dict[str, Any]]


@dataclass
class Wanted:
    """What a command line or an environment asks for, in this program's own words."""

    model: str | None = None
    name: str | None = None
    port: int | None = None
    adapters: list[str] = field(default_factory=list)
    spec: Spec = field(default_factory=dict)
    """Fields of the InferenceService, by section."""
    without_effect: list[str] = field(default_factory=list)


Reader = Callable[[str], Any]


def _number(text: str) -> int:
    """Read a count; vLLM takes ``8k`` (thousands) and ``8K`` (1024s), too."""
    match = re.fullmatch(r"([0-9]+)([kKmM]?)", text)
    if match is None:
        message = "is not a number"
        raise ValueError(message)
    units = {"": 1, "k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}
    return int(match[1]) * units[match[2]]


def _dtype(text: str) -> str:
    names = {"auto": "auto", "float": "float32", "float32": "float32", "bfloat16": "bfloat16"}
    if text not in names:
        message = f"must be one of {', '.join(names)}"
        raise ValueError(message)
    return names[text]


FIELDS: Final[Mapping[str, tuple[str, str, Reader]]] = {
    "dtype": ("model", "dtype", _dtype),
    "max-model-len": ("model", "maxModelLen", _number),
    "max-num-seqs": ("engine", "maxRunning", _number),
    "max-num-batched-tokens": ("engine", "maxBatchTokens", _number),
    "block-size": ("engine", "blockSize", _number),
    "kv-cache-memory-bytes": ("engine", "kvBytes", _number),
    "max-lora-rank": ("adapters", "maxRank", _number),
    "watermark-gamma": ("server", "watermarkGreenlistRatio", float),
    "watermark-delta": ("server", "watermarkBias", float),
    "watermark-key": ("server", "watermarkHashingKey", int),
}
"""Flags of vLLM and of TGI's launcher, and one of our own, that are fields of the service."""

HARMLESS: Final[Mapping[str, frozenset[str]]] = {
    "tensor-parallel-size": frozenset({"1"}),
    "pipeline-parallel-size": frozenset({"1"}),
    "data-parallel-size": frozenset({"1"}),
    "api-server-count": frozenset({"1"}),
    "load-format": frozenset({"auto", "safetensors"}),
    "kv-cache-dtype": frozenset({"auto"}),
    "generation-config": frozenset({"auto"}),
    "response-role": frozenset({"assistant"}),
    "chat-template-content-format": frozenset({"auto", "string"}),
    "scheduling-policy": frozenset({"priority"}),
    "tool-call-parser": frozenset({"hermes", "llama3_json", "mistral"}),
    "reasoning-parser": frozenset({"deepseek_r1", "qwen3"}),
    "host": frozenset({"127.0.0.1", "localhost"}),
    "max-logprobs": frozenset({"20"}),
}
"""Flags with the values that ask for what happens anyway; others cannot be had."""

SWITCHES: Final = frozenset(
    {
        "enable-auto-tool-choice",
        "enable-chunked-prefill",
        "enable-lora",
        "enable-prefix-caching",
        "enable-prompt-tokens-details",
        "enable-request-id-headers",
        "enable-tokenizer-info-endpoint",
    }
)
"""Flags without a value for what happens anyway."""

NOTED: Final[Mapping[str, bool]] = {
    "disable-log-requests": False,
    "disable-log-stats": False,
    "enable-log-requests": False,
    "enforce-eager": False,
    "cpu-offload-gb": True,
    "download-dir": True,
    "gpu-memory-utilization": True,
    "max-cpu-loras": True,
    "max-log-len": True,
    "max-loras": True,
    "seed": True,
    "swap-space": True,
    "uvicorn-log-level": True,
}
"""Flags that change nothing here, and whether they have a value."""

_SHORT: Final = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-q": "quantization",
}

TGI_FIELDS: Final[Mapping[str, tuple[str, str, Reader]]] = {
    "DTYPE": ("model", "dtype", _dtype),
    "MAX_TOTAL_TOKENS": ("model", "maxModelLen", _number),
    "MAX_BATCH_PREFILL_TOKENS": ("engine", "maxBatchTokens", _number),
    "MAX_BATCH_SIZE": ("engine", "maxRunning", _number),
    "MAX_CONCURRENT_REQUESTS": ("engine", "maxWaiting", _number),
    "PAYLOAD_LIMIT": ("server", "maxBodyBytes", _number),
    "GRACEFUL_TERMINATION_TIMEOUT": ("server", "drainTimeoutSeconds", _number),
    "WATERMARK_GAMMA": ("server", "watermarkGreenlistRatio", float),
    "WATERMARK_DELTA": ("server", "watermarkBias", float),
}
TGI_REFUSED: Final[Mapping[str, frozenset[str]]] = {
    "API_KEY": frozenset(),
    "CORS_ALLOW_ORIGIN": frozenset(),
    "DISABLE_GRAMMAR_SUPPORT": frozenset({"false", "0"}),
    "KV_CACHE_DTYPE": frozenset(),
    "NGROK": frozenset({"false", "0"}),
    "NUM_SHARD": frozenset({"1"}),
    "QUANTIZE": frozenset(),
    "REVISION": frozenset(),
    "ROPE_FACTOR": frozenset(),
    "ROPE_SCALING": frozenset(),
    "SHARDED": frozenset({"false"}),
    "SPECULATE": frozenset({"0"}),
    "TOKENIZER_CONFIG_PATH": frozenset(),
    "TRUST_REMOTE_CODE": frozenset({"false", "0"}),
}
"""Variables of TGI's launcher that cannot be honoured, with the values that ask for nothing."""
TGI_NOTED: Final = (
    "CUDA_GRAPHS",
    "CUDA_MEMORY_FRACTION",
    "DISABLE_CUSTOM_KERNELS",
    "ENABLE_PREFILL_LOGPROBS",
    "HUGGINGFACE_HUB_CACHE",
    "JSON_OUTPUT",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MAX_BATCH_TOTAL_TOKENS",
    "MAX_BEST_OF",
    "MAX_CLIENT_BATCH_SIZE",
    "MAX_INPUT_LENGTH",
    "MAX_INPUT_TOKENS",
    "MAX_STOP_SEQUENCES",
    "MAX_TOP_N_TOKENS",
    "MAX_WAITING_TOKENS",
    "OTLP_ENDPOINT",
    "OTLP_SERVICE_NAME",
    "PREFIX_CACHING",
    "PROMETHEUS_PORT",
    "SHARD_UDS_PATH",
    "USAGE_STATS",
    "VALIDATION_WORKERS",
    "WAITING_SERVED_RATIO",
    "WEIGHTS_CACHE_OVERRIDE",
)


def read_flags(arguments: Sequence[str]) -> Wanted:
    """Read flags of ``vllm serve``.

    Raises:
        click.UsageError: One is unknown, malformed, or cannot be honoured.
    """
    wanted = Wanted()
    for shown, name, values in _flags(arguments):
        if name in FIELDS:
            section, key, reader = FIELDS[name]
            wanted.spec.setdefault(section, {})[key] = _read(shown, reader, _one(shown, values))
        elif name in HARMLESS:
            if _one(shown, values) not in HARMLESS[name]:
                raise _refused(f"{shown} {values[0]}")
        elif name in NOTED:
            _expect(shown, values, 1 if NOTED[name] else 0)
            wanted.without_effect.append(shown)
        elif name in SWITCHES:
            _expect(shown, values, 0)
        else:
            _take(wanted, shown, name, values)
    return wanted


def _take(wanted: Wanted, shown: str, name: str, values: Sequence[str]) -> None:
    """Read a flag that is neither a field nor without consequence."""
    match name:
        case "model":
            wanted.model = _one(shown, values)
        case "served-model-name":
            wanted.name = _one(shown, values)
        case "port":
            wanted.port = _read(shown, _number, _one(shown, values))
        case "lora-modules":
            if not values:
                raise click.UsageError(f"{shown} needs a value")
            wanted.adapters += [_read(shown, _module, value) for value in values]
        case _:
            raise _refused(shown)


def read_environment(environment: Mapping[str, str]) -> Wanted | None:
    """Read the variables of TGI's launcher; None where ``MODEL_ID`` is not among them.

    Raises:
        click.UsageError: One is malformed, or cannot be honoured.
    """
    given = {name: value for name, value in environment.items() if value}
    if "MODEL_ID" not in given:
        return None
    wanted = Wanted(model=given["MODEL_ID"])
    for name, (section, key, reader) in TGI_FIELDS.items():
        if name in given:
            wanted.spec.setdefault(section, {})[key] = _read(name, reader, given[name])
    for name, harmless in TGI_REFUSED.items():
        if name in given and given[name].lower() not in harmless:
            raise _refused(name)
    if "PORT" in given:
        wanted.port = _read("PORT", _number, given["PORT"])
    if "LORA_ADAPTERS" in given:
        adapters = [each.strip() for each in given["LORA_ADAPTERS"].split(",")]
        wanted.adapters = [each if "=" in each else f"{each}={each}" for each in adapters if each]
    wanted.without_effect = [name for name in TGI_NOTED if name in given]
    return wanted


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each flag as it was typed, its name, and the values behind it."""
    at = 0
    while at < len(arguments):
        shown, equals, value = arguments[at].partition("=")
        at += 1
        if not shown.startswith("-"):
            raise click.UsageError(f"unexpected argument {shown!r}")
        values = [value] if equals else []
        while not equals and at < len(arguments) and not arguments[at].startswith("-"):
            values.append(arguments[at])
            at += 1
        yield shown, _SHORT.get(shown, shown.lstrip("-").replace("_", "-")), values


def _one(shown: str, values: Sequence[str]) -> str:
    _expect(shown, values, 1)
    return values[0]


def _expect(shown: str, values: Sequence[str], count: int) -> None:
    if len(values) != count:
        raise click.UsageError(f"{shown} takes {'one value' if count else 'no value'}")


def _read(shown: str, reader: Reader, value: str) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        raise click.UsageError(f"{shown}: {value!r} {error}") from error


def _module(value: str) -> str:
    """Read ``name=path`` or its form as JSON."""
    if not value.startswith("{"):
        return value
    try:
        module = json.loads(value)
    except ValueError:
        module = None
    if not isinstance(module, dict) or not {"name", "path"} <= module.keys():
        message = "is not an object with `name` and `path`"
        raise ValueError(message)
    return f"{module['name']}={module['path']}"


def _refused(shown: str) -> click.UsageError:
    return click.UsageError(f"{shown} is not supported by graft serve")
