"""Read ``adapter_config.json`` in a closed world: what Graft does not do is refused by name.

Never executes a pattern out of a config; which modules are adapted is what the tensors say.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from graft_protocol.reasons import Reason
from graft_runtime.adapters.peft_defaults import LORA_DEFAULTS
from graft_runtime.adapters.safetensors_header import shown, unique_object
from graft_runtime.errors import ReasonedError

_T = TypeVar("_T")

CONFIG_FILE = "adapter_config.json"

_MAX_CONFIG_BYTES = 1 << 20
_MAX_ALPHA = 1e6
_MAX_CONFIG_RANK = 1 << 20
_EXACT_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")

_UNDERSTOOD = frozenset(
    {"alpha_pattern", "lora_alpha", "r", "rank_pattern", "target_modules", "use_rslora"}
)
_INFORMATIONAL = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "inference_mode",
        "lora_dropout",
        "peft_version",
        "revision",
    }
)
"""Fields about the past: who trained it, on what, and how it began."""

_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Those that leave the base model's weights as they were."""

_OFF: tuple[Any, ...] = (None, False, {}, [])
"""What a field that is newer than our table may say: that it is not used."""


_ALSO_OFF: dict[str, tuple[Any, ...]] = {"target_parameters": ([],)}
"""What peft writes for fields that it has looked at and found no use for, beside their defaults."""


@dataclass(frozen=True)
class PeftConfig:
    """The part of a LoRA config that decides what is computed."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | None
    """None: the config holds a pattern, and the tensors decide alone."""

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, named by its full path in the base model."""
        return _look_up(self.rank_pattern, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """Return the factor on a module's ``B @ A``."""
        rank = self.rank_of(module)
        alpha = _look_up(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Tell whether the config names a module, by its full path or the end of it."""
        return self.target_modules is None or any(
            _matches(target, module) for target in self.target_modules
        )


def load_peft_config(path: Path) -> PeftConfig:
    """Read and check a config file.

    Raises:
        ReasonedError: MalformedArtifact, UnsupportedAdapterType naming the field, or InvalidConfig.
            The file has to change.
    """
    fields = _read_object(path)
    _refuse_unsupported(fields)
    return PeftConfig(
        rank=_rank("r", fields.get("r", LORA_DEFAULTS["r"])),
        alpha=_alpha("lora_alpha", fields.get("lora_alpha", LORA_DEFAULTS["lora_alpha"])),
        use_rslora=_flag("use_rslora", fields.get("use_rslora", False)),
        rank_pattern={
            name: _rank(f"rank_pattern.{name}", value)
            for name, value in _pattern("rank_pattern", fields).items()
        },
        alpha_pattern={
            name: _alpha(f"alpha_pattern.{name}", value)
            for name, value in _pattern("alpha_pattern", fields).items()
        },
        target_modules=_target_modules(fields.get("target_modules")),
    )


def named_base_model(path: Path) -> str:
    """Return what a config file calls the model it was trained on; empty if it does not say.

    Raises:
        ReasonedError: MalformedArtifact.
    """
    named = _read_object(path).get("base_model_name_or_path")
    return named if isinstance(named, str) else ""


def _read_object(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_MAX_CONFIG_BYTES + 1)
    if len(raw) > _MAX_CONFIG_BYTES:
        raise _malformed(f"is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        fields = json.loads(raw.decode(), object_pairs_hook=unique_object)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"is not JSON: {str(error)[:100]}") from error
    if not isinstance(fields, dict):
        raise _malformed("is not a JSON object")
    return fields


def _refuse_unsupported(fields: dict[str, Any]) -> None:
    if fields.get("peft_type") != "LORA":
        raise _unsupported("peft_type", fields.get("peft_type"))
    if fields.get("task_type") not in (None, "CAUSAL_LM"):
        raise _unsupported("task_type", fields["task_type"])
    if not _is_one_of(fields.get("init_lora_weights", True), _PLAIN_INITIALISATIONS):
        raise _unsupported("init_lora_weights", fields["init_lora_weights"])
    decided = {"peft_type", "task_type", "init_lora_weights"} | _UNDERSTOOD | _INFORMATIONAL
    for name in sorted(set(fields) - decided):
        allowed = (LORA_DEFAULTS[name], None) if name in LORA_DEFAULTS else _OFF
        if not _is_one_of(fields[name], (*allowed, *_ALSO_OFF.get(name, ()))):
            raise _unsupported(name, fields[name])


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Compare with types: in Python 0 and 0.0 equal False, in a config they are something else."""
    return any(type(value) is type(other) and value == other for other in allowed)


def _rank(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_CONFIG_RANK:
        raise _invalid(name, value, "must be a whole number above zero")
    return value


def _alpha(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _invalid(name, value, "must be a number")
    if not 0 < abs(value) <= _MAX_ALPHA:  # also false for NaN
        raise _invalid(name, value, f"must not be zero and at most {_MAX_ALPHA:g}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, value, "must be true or false")
    return value


def _pattern(field: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a map from module names; what peft would run as an expression is refused."""
    pattern = fields.get(field) or {}
    if not isinstance(pattern, dict):
        raise _invalid(field, pattern, "must be an object")
    for name in pattern:
        if not _EXACT_NAME.fullmatch(name):
            raise _unsupported(f"{field} with the key {shown(name)}", pattern[name])
    return pattern


def _target_modules(value: Any) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _invalid("target_modules", value, "must be a list of names")
    return tuple(value)


def _look_up(pattern: Mapping[str, _T], module: str, default: _T) -> _T:
    """Return the first entry that fits, as peft does."""
    return next((value for name, value in pattern.items() if _matches(name, module)), default)


def _matches(name: str, module: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _malformed(what: str) -> ReasonedError:
    return ReasonedError(Reason.MALFORMED_ARTIFACT, f"{CONFIG_FILE} {what}")


def _invalid(name: str, value: Any, rule: str) -> ReasonedError:
    message = f"{CONFIG_FILE}: {name} = {shown(value)} {rule}"
    return ReasonedError(Reason.INVALID_CONFIG, message)


def _unsupported(name: str, value: Any) -> ReasonedError:
    message = f"{CONFIG_FILE}: {name} = {shown(value)} is not supported"
    return ReasonedError(Reason.UNSUPPORTED_ADAPTER_TYPE, message)
