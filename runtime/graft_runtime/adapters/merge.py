"""Add adapters up into one, offline: the exact weighted sum of their updates, as peft writes it.

The factors lie beside one another, each B multiplied with its scaling and weight; so the rank of
a module is the sum of its ranks in the parts. A request's `merged_adapters` computes the same
(`graft_runtime.adapters.blends`). Knows no base model and no torch.

Shape legend: R rank of a module, I/O its features in/out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from graft_protocol.digest import is_adapter_file
from graft_protocol.reasons import Reason
from graft_runtime.adapters.blends import MAX_PARTS, equal_weights
from graft_runtime.adapters.convert import cast_finite, read_weights
from graft_runtime.adapters.peft_config import CONFIG_FILE, PeftConfig, load_peft_config
from graft_runtime.adapters.safetensors_header import TensorInfo, file_header, read_header
from graft_runtime.adapters.validate import (
    PREFIX,
    WEIGHTS_FILE,
    check_factors,
    check_files,
    pair_factors,
)
from graft_runtime.adapters.weights import SERVING_DTYPES, Float32, ServingDtype
from graft_runtime.errors import InvalidRequestError, ReasonedError

Pair = dict[str, TensorInfo]


@dataclass(frozen=True)
class _Part:
    folder: Path
    weight: float
    config: PeftConfig
    modules: dict[str, Pair]


@dataclass(frozen=True)
class Merged:
    """What came out."""

    num_modules: int
    rank: int
    """The highest of any module: what a service's `maxRank` has to admit."""


def merge_adapters(folders: Sequence[Path], weights: Sequence[float], out: Path) -> Merged:
    """Write the weighted sum of adapters to a new folder.

    Args:
        folders: Adapters as peft writes them, at most eight.
        weights: One number for each; none means that all count equally.
        out: Must not exist; it appears when it is whole.

    Raises:
        InvalidRequestError: The arguments do not fit one another.
        ReasonedError: A part is not an adapter that Graft serves, or the parts are of different
            models, or the sum is not a number or nothing.
    """
    _check_arguments(folders, weights, out)
    parts = [
        _read_part(folder, weight)
        for folder, weight in zip(folders, weights or equal_weights(len(folders)), strict=True)
    ]
    ranks = _merged_ranks(parts)
    unfinished = out.with_name(f".{out.name}.unfinished")
    unfinished.mkdir(parents=True)
    try:
        _write_weights(parts, ranks, unfinished / WEIGHTS_FILE)
        _write_config(parts, ranks, unfinished / CONFIG_FILE)
        unfinished.rename(out)
    finally:
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            (unfinished / name).unlink(missing_ok=True)
        if unfinished.exists():
            unfinished.rmdir()
    return Merged(len(ranks), max(ranks.values()))


def _check_arguments(folders: Sequence[Path], weights: Sequence[float], out: Path) -> None:
    if not 1 <= len(folders) <= MAX_PARTS:
        message = f"1 to {MAX_PARTS} adapters can be merged, not {len(folders)}"
        raise InvalidRequestError(message, param="folders")
    if weights and len(weights) != len(folders):
        message = f"{len(weights)} weights for {len(folders)} adapters"
        raise InvalidRequestError(message, param="weights")
    if not all(map(math.isfinite, weights)):
        raise InvalidRequestError("a weight is not a finite number", param="weights")
    if out.exists():
        raise InvalidRequestError(f"{out} is there already", param="out")


def _read_part(folder: Path, weight: float) -> _Part:
    try:
        check_files(path.name for path in folder.iterdir() if is_adapter_file(path.name))
        config = load_peft_config(folder / CONFIG_FILE)
        modules = pair_factors(read_header(folder / WEIGHTS_FILE))
        for module, pair in modules.items():
            check_factors(module, pair, config.rank_of(module))
    except ReasonedError as error:
        raise ReasonedError(error.reason, f"{folder}: {error}") from error
    return _Part(folder, weight, config, modules)


def _merged_ranks(parts: Sequence[_Part]) -> dict[str, int]:
    """Return every module's rank, having compared what its parts read and write."""
    ranks: dict[str, int] = {}
    shapes: dict[str, tuple[int, int]] = {}
    for part in parts:
        for module, pair in part.modules.items():
            shape = pair["A"].shape[1], pair["B"].shape[0]
            if shapes.setdefault(module, shape) != shape:
                message = f"{part.folder}: {module} is {shape}, elsewhere {shapes[module]}"
                raise ReasonedError(Reason.SHAPE_MISMATCH, message)
            ranks[module] = ranks.get(module, 0) + pair["A"].shape[0]
    return dict(sorted(ranks.items()))


def _write_weights(parts: Sequence[_Part], ranks: dict[str, int], path: Path) -> None:
    dtype = _dtype(parts)
    file_dtype = SERVING_DTYPES[dtype][0]
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for module, rank in ranks.items():
        pair = next(part.modules[module] for part in parts if module in part.modules)
        shapes = (rank, pair["A"].shape[1]), (pair["B"].shape[0], rank)
        for factor, shape in zip("AB", shapes, strict=True):
            tensors.append((f"{PREFIX}{module}.lora_{factor}.weight", file_dtype, shape))
    changes = False
    with path.open("wb") as target:
        target.write(file_header(tensors, {"format": "pt"}))
        for module in ranks:
            changes |= _write_module(
                [part for part in parts if module in part.modules], module, target, dtype
            )
    if not changes:
        raise ReasonedError(Reason.INVALID_CONFIG, "the sum changes nothing: it is zero")


def _write_module(
    parts: Sequence[_Part], module: str, target: IO[bytes], dtype: ServingDtype
) -> bool:
    """Write one module's factors; tell whether their product can be other than zero."""
    downs: list[Float32] = []
    ups: list[Float32] = []
    for part in parts:
        pair = part.modules[module]
        with (part.folder / WEIGHTS_FILE).open("rb") as source:
            downs.append(read_weights(source, pair["A"]))
            with np.errstate(over="ignore"):
                factor = np.float32(part.config.scaling_of(module) * part.weight)
                ups.append(read_weights(source, pair["B"]) * factor)
    down_RI, up_OR = np.concatenate(downs, axis=0), np.concatenate(ups, axis=1)
    name = parts[0].modules[module]["B"].name
    for values in (down_RI, up_OR):
        target.write(cast_finite(values, name, dtype).tobytes())
    return bool(down_RI.any() and up_OR.any())


def _dtype(parts: Sequence[_Part]) -> ServingDtype:
    """Return the dtype of all parts, or float32 if they differ."""
    found = {
        tensor.dtype for part in parts for pair in part.modules.values() for tensor in pair.values()
    }
    names = {file_dtype: name for name, (file_dtype, _) in SERVING_DTYPES.items()}
    return names[found.pop()] if len(found) == 1 else "float32"


def _write_config(parts: Sequence[_Part], ranks: dict[str, int], path: Path) -> None:
    """Write a config by which every scaling is 1: they are in B already."""
    most = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != most}
    bases = {_base_model(part.folder) for part in parts}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": bases.pop() if len(bases) == 1 else None,
        "r": most,
        "lora_alpha": most,
        "lora_dropout": 0.0,
        "bias": "none",
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
    }
    path.write_text(json.dumps(config, indent=2))


def _base_model(folder: Path) -> str | None:
    """Return what the config says it was trained on; information only."""
    name = json.loads((folder / CONFIG_FILE).read_text()).get("base_model_name_or_path")
    return name if isinstance(name, str) else None
