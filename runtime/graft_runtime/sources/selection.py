"""Which files of a source belong to an adapter or a model; decided by name, before any download."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from graft_protocol.digest import TEMPLATE_FILE, is_adapter_file
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.base import SourceFile

Selection = Callable[[Sequence[SourceFile]], list[SourceFile]]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_UNSAFE_SUFFIXES = (
    ".bin",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".npz",
    ".npy",
    ".pickle",
    ".pkl",
    ".pt",
    ".pth",
    ".tar",
    ".tar.bz2",
    ".tar.gz",
    ".tar.xz",
    ".tgz",
    ".zip",
)
"""Formats that can carry code, or are archives. Never opened."""

_MODEL_NAMES = frozenset(
    {
        "added_tokens.json",
        TEMPLATE_FILE,
        "config.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "vocab.json",
    }
)


def is_model_file(name: str) -> bool:
    """Tell whether a file of a checkpoint is one the runtime reads."""
    return (
        name in _MODEL_NAMES
        or name.startswith("tokenizer")
        or name.endswith((".safetensors", ".safetensors.index.json"))
    )


def adapter_files(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Choose the files that make an adapter.

    Raises:
        ReasonedError: SourceNotFound, UnsafeFormat, MalformedArtifact or UnsafePath, naming a file.
    """
    return _choose(files, is_adapter_file, "adapter_config.json")


def adapter_files_with_template(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Choose the files that make an adapter with a chat template of its own.

    Raises:
        ReasonedError: As for `adapter_files`; MalformedArtifact if there is no template.
    """
    with_template = partial(is_adapter_file, with_template=True)
    chosen = _choose(files, with_template, "adapter_config.json")
    if not any(file.name == TEMPLATE_FILE for file in chosen):
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"there is no {TEMPLATE_FILE}")
    return chosen


def model_files(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Choose the files that make a base model.

    Raises:
        ReasonedError: As for `adapter_files`.
    """
    return _choose(files, is_model_file, "config.json")


def _choose(
    files: Sequence[SourceFile], wanted: Callable[[str], bool], config: str
) -> list[SourceFile]:
    if not files:
        raise ReasonedError(Reason.SOURCE_NOT_FOUND, "the source holds no files")
    chosen = sorted(file for file in files if wanted(file.name))
    if not any(file.name.endswith(".safetensors") for file in chosen):
        unsafe = next((file.name for file in files if _is_unsafe(file.name)), None)
        if unsafe is not None:
            message = f"{unsafe} is not loaded: only safetensors files are"
            raise ReasonedError(Reason.UNSAFE_FORMAT, message)
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, "there is no safetensors file")
    if config not in {file.name for file in chosen}:
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, f"there is no {config}")
    for file in chosen:
        if not _PLAIN_NAME.fullmatch(file.name):
            raise ReasonedError(Reason.UNSAFE_PATH, f"{file.name!r} is not a plain file name")
    return chosen


def _is_unsafe(name: str) -> bool:
    return name.lower().endswith(_UNSAFE_SUFFIXES)
