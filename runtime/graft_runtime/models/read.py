"""Reads which model a checkpoint holds: the generic decoder's own kind, or one of transformers'.

The only place that chooses between the two. Imports transformers only when it has to.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.models.arch import load_arch
from graft_runtime.models.base import ModelArch
from graft_runtime.models.families import FAMILIES
from graft_runtime.models.foreign_arch import ForeignArch
from graft_runtime.models.hf_config import read_json_object

_SECONDS = 300.0
"""More than importing torch and transformers ever took on a busy machine."""


class _Refused(msgspec.Struct):
    """What the helper process answers instead of a description."""

    reason: str
    message: str


def read_model(model_dir: Path) -> ModelArch:
    """Describe the model of a checkpoint.

    Raises:
        ReasonedError: It cannot be served; the reason names a field, a file or a property.
    """
    if _is_known(model_dir):
        return load_arch(model_dir)
    from graft_runtime.models.transformers_probe import probe

    return probe(model_dir)


def read_model_apart(model_dir: Path) -> ModelArch:
    """Do the same, but let a process of its own import torch and transformers where needed.

    For a process that stays small. Blocks.

    Raises:
        ReasonedError: As `read_model`, or the helper process failed.
    """
    if _is_known(model_dir):
        return load_arch(model_dir)
    command = [sys.executable, "-m", "graft_runtime.models.read", str(model_dir)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        answer = msgspec.json.decode(done.stdout, type=dict[str, Any])
        if "reason" in answer:
            refused = msgspec.convert(answer, _Refused)
            raise ReasonedError(Reason(refused.reason), refused.message)
        return msgspec.convert(answer, ForeignArch)
    except (subprocess.TimeoutExpired, msgspec.MsgspecError) as error:
        message = "the process that looks at models of transformers gave no answer"
        raise ReasonedError(Reason.INTERNAL_ERROR, message) from error


def _is_known(model_dir: Path) -> bool:
    """Tell whether the generic decoder is to answer, be it by refusing."""
    config = read_json_object(model_dir / "config.json")
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        return True
    # Without a type transformers cannot know it either.
    return names[0] in FAMILIES or not isinstance(config.get("model_type"), str)


def _answer(model_dir: Path) -> bytes:
    try:
        return msgspec.json.encode(read_model(model_dir))
    except ReasonedError as error:
        return msgspec.json.encode(_Refused(error.reason.value, error.message))


if __name__ == "__main__":
    sys.stdout.buffer.write(_answer(Path(sys.argv[1])))
