"""Check a peft adapter against the base model, whole and closed-world, before anything uses it.

Looks at the config and at tensor headers; values are checked by `convert.py`, which reads them.
The loader calls this in a thread; the engine never sees an adapter that did not pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from graft_protocol.digest import TEMPLATE_FILE
from graft_protocol.reasons import Reason
from graft_runtime.adapters.peft_config import CONFIG_FILE, PeftConfig, load_peft_config
from graft_runtime.adapters.safetensors_header import TensorInfo, read_header, shown
from graft_runtime.adapters.weights import FILE_DTYPES
from graft_runtime.errors import ReasonedError
from graft_runtime.layers.lora.layout import LoraGroup, all_groups
from graft_runtime.models.base import ModelArch

WEIGHTS_FILE = "adapter_model.safetensors"

PREFIX = "base_model.model."
"""What peft puts before the names of the base model's modules."""
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_BASE_COPIES = ("lm_head.base_layer.weight", "lm_head.weight", "embed_tokens.weight")
_LAYER = re.compile(r"[a-zA-Z_.]+\.(\d{1,9})\.")


@dataclass(frozen=True)
class ModulePlace:
    """Where a module's update goes: a slice of a fused group of a layer."""

    layer: int | None
    group: LoraGroup
    slice_index: int

    @property
    def out_features(self) -> int:
        """Width of the module's output."""
        return self.group.slices[self.slice_index].out_features


@dataclass(frozen=True)
class ModuleUpdate:
    """One adapted module: its two factors and the number on their product."""

    module: str
    """Full path in the base model."""
    place: ModulePlace
    rank: int
    scaling: float
    a: TensorInfo
    b: TensorInfo


@dataclass(frozen=True)
class ValidAdapter:
    """An adapter whose every part is understood."""

    weights: Path
    updates: tuple[ModuleUpdate, ...]

    @property
    def rank(self) -> int:
        """The highest rank of any module."""
        return max(update.rank for update in self.updates)

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The kinds of modules that are adapted, as ``q_proj``."""
        return tuple(sorted({update.module.rpartition(".")[2] for update in self.updates}))


def validate_adapter(folder: Path, arch: ModelArch, *, max_rank: int) -> ValidAdapter:
    """Check the files of an adapter.

    Raises:
        ReasonedError: Says which file, field or tensor is not as it must be. Terminal: the files,
            the base model or the service's limits have to change.
    """
    check_files(path.name for path in folder.iterdir())
    config = load_peft_config(folder / CONFIG_FILE)
    tensors = read_header(folder / WEIGHTS_FILE)
    places = module_places(arch)
    pairs = pair_factors(tensors)
    for module, pair in pairs.items():
        if module not in places:
            raise _no_such_module(next(iter(pair.values())).name, module, arch)
    updates = tuple(
        _update(module, pairs[module], places[module], config, max_rank)
        for module in sorted(pairs, key=list(places).index)
    )
    _check_targets(config, pairs, places)
    return ValidAdapter(folder / WEIGHTS_FILE, updates)


def module_places(arch: ModelArch) -> dict[str, ModulePlace]:
    """List every module of the base model that can be adapted, in the order it is computed."""
    return {
        arch.module_path(layer, part.module): ModulePlace(layer, group, index)
        for layer, group in all_groups(arch)
        for index, part in enumerate(group.slices)
    }


def check_files(names: Iterable[str]) -> None:
    """Check that a folder's files are a config and weights, and nothing that would be left unused.

    Raises:
        ReasonedError: They are not.
    """
    found = set(names)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if name not in found:
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"there is no {name}")
    others = sorted(found - {CONFIG_FILE, WEIGHTS_FILE, TEMPLATE_FILE})
    if others:
        message = f"only {WEIGHTS_FILE} would be used, not {shown(others[0])}"
        raise ReasonedError(Reason.UNUSED_TENSORS, message)


def pair_factors(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """Sort tensors by module and factor (``A`` or ``B``); every one must be a factor.

    Raises:
        ReasonedError: One is not, or is of a dtype that is not read, or there is none.
    """
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name.removeprefix(PREFIX))
        if not name.startswith(PREFIX) or match is None:
            raise _not_a_factor(name)
        if tensor.dtype not in FILE_DTYPES:
            message = f"tensor {shown(name)} has dtype {tensor.dtype}"
            raise ReasonedError(Reason.UNSUPPORTED_DTYPE, message)
        pairs.setdefault(match["module"], {})[match["factor"]] = tensor
    if not pairs:
        raise ReasonedError(Reason.UNSUPPORTED_TARGET, f"{WEIGHTS_FILE} holds no tensors")
    return pairs


def check_factors(
    module: str,
    pair: Mapping[str, TensorInfo],
    rank: int,
    features: tuple[int, int] | None = None,
) -> None:
    """Check the shapes of a module's factors.

    Args:
        module: Its path in the base model.
        pair: Its factors.
        rank: What the config says.
        features: In and out; None takes what the factors say.

    Raises:
        ReasonedError: ShapeMismatch.
    """
    for factor in "AB":
        if factor not in pair:
            message = f"{module} has no lora_{factor}"
            raise ReasonedError(Reason.SHAPE_MISMATCH, message)
    a, b = pair["A"], pair["B"]
    in_features, out_features = features or (sum(a.shape[-1:]), sum(b.shape[:1]))
    _check_shape(a, (rank, in_features))
    _check_shape(b, (out_features, rank))


def _not_a_factor(name: str) -> ReasonedError:
    if "lora_magnitude_vector" in name:
        message = f"tensor {shown(name)} belongs to DoRA, which is not supported"
        return ReasonedError(Reason.UNSUPPORTED_ADAPTER_TYPE, message)
    if "lora_embedding_" in name:
        message = f"tensor {shown(name)} adapts an embedding, which is not supported"
        return ReasonedError(Reason.UNSUPPORTED_TARGET, message)
    message = f"tensor {shown(name)} would not be used"
    if name.endswith(_BASE_COPIES):
        message += ": peft adds copies of base weights unless save_embedding_layers=False"
    return ReasonedError(Reason.UNUSED_TENSORS, message)


def _no_such_module(name: str, module: str, arch: ModelArch) -> ReasonedError:
    layer = _LAYER.match(module)
    if layer is not None and int(layer[1]) >= arch.num_layers:
        message = f"tensor {shown(name)}: the base model has {arch.num_layers} layers"
        return ReasonedError(Reason.SHAPE_MISMATCH, message)
    message = f"tensor {shown(name)}: {shown(module)} is not a module that can be adapted"
    return ReasonedError(Reason.UNSUPPORTED_TARGET, message)


def _update(
    module: str,
    pair: Mapping[str, TensorInfo],
    place: ModulePlace,
    config: PeftConfig,
    max_rank: int,
) -> ModuleUpdate:
    rank = config.rank_of(module)
    if rank > max_rank:
        message = f"{module} has rank {rank}, the service's maxRank is {max_rank}"
        raise ReasonedError(Reason.RANK_TOO_LARGE, message)
    check_factors(module, pair, rank, (place.group.in_features, place.out_features))
    return ModuleUpdate(module, place, rank, config.scaling_of(module), pair["A"], pair["B"])


def _check_shape(tensor: TensorInfo, shape: tuple[int, int]) -> None:
    if tensor.shape != shape:
        message = f"tensor {shown(tensor.name)} has shape {list(tensor.shape)}, not {list(shape)}"
        raise ReasonedError(Reason.SHAPE_MISMATCH, message)


def _check_targets(
    config: PeftConfig, found: Mapping[str, object], places: Mapping[str, ModulePlace]
) -> None:
    """Hold the config's list of modules and the file's tensors equal."""
    for target in config.target_modules or ():
        if not any(module == target or module.endswith(f".{target}") for module in places):
            message = f"{CONFIG_FILE}: target module {shown(target)} cannot be adapted"
            raise ReasonedError(Reason.UNSUPPORTED_TARGET, message)
    for module in places:
        if module in found and not config.targets(module):
            message = f"{CONFIG_FILE}: target_modules leaves out {module}, which has tensors"
            raise ReasonedError(Reason.UNUSED_TENSORS, message)
        if module not in found and config.target_modules is not None and config.targets(module):
            message = f"{CONFIG_FILE} targets {module}, which has no tensors"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message)
