"""Whether an adapter says that it was trained on another model than the one it is served on.

It only warns: shapes are checked, and what trainers write there is often a folder, a fork or a
mirror. So only names of repositories on a model hub are compared, and of those not the owner, not
the case and not the form in which weights are stored. The loader calls this in a thread.
"""

from __future__ import annotations

import re
from pathlib import Path

from graft_runtime.adapters.peft_config import CONFIG_FILE, named_base_model
from graft_runtime.errors import ReasonedError
from graft_runtime.sources.uri import parse_uri

_HUB_NAME = re.compile(r"(?P<owner>[A-Za-z0-9][\w.-]{0,95})/(?P<name>[A-Za-z0-9_][\w.-]{0,95})")
_FOLDERS = re.compile(
    r"(?:base|cache|ckpts?|checkpoints?|data|home|llms?|local|mnt|models?|opt|outputs?|pretrained"
    r"|results?|root|runs?|saves?|saved|tmp|train\w*|weights|work\w*)(?:[_-]?(?:dir|models?))?",
    re.IGNORECASE,
)
"""What the first part of a relative path is called, and no owner of models that we know of."""
_CHECKPOINT = re.compile(r"(?:checkpoint|ckpt|epoch|step)[-_]?\d*", re.IGNORECASE)
_STORED_AS = re.compile(
    r"(?:[-_.](?:awq|bf16|bnb|dynamic|fp16|fp8|gguf|gptq|hf|int4|int8|mlx|nf4|unsloth|4bit|8bit))+$"
)
"""Ends of names that tell how the same weights are stored."""


def other_base(folder: Path, model_uri: str) -> str:
    """Return a warning if an adapter's config names another model than the served one, else "".

    Args:
        folder: The adapter's files.
        model_uri: Where the served model was read.
    """
    try:
        uri = parse_uri(model_uri)
        named = named_base_model(folder / CONFIG_FILE)
    except (OSError, ReasonedError):
        return ""  # whoever loads the adapter tells of it
    if uri.scheme != "hf" or not is_other_model(named, uri.bucket):
        return ""
    return f"{CONFIG_FILE} names {named} as its base model, and {uri.bucket} is served"


def is_other_model(named: str, served: str) -> bool:
    """Whether two names are those of repositories, and of different models."""
    names = _repository(named), _repository(served)
    return "" not in names and names[0] != names[1]


def _repository(name: str) -> str:
    """Return a repository's own part in one spelling; empty for what may be a path."""
    match = _HUB_NAME.fullmatch(name)
    if match is None or _FOLDERS.fullmatch(match["owner"]) or _CHECKPOINT.fullmatch(match["name"]):
        return ""
    # Llama's repositories lost the prefix; the old names still lead to them.
    return _STORED_AS.sub("", match["name"].lower()).removeprefix("meta-")
