"""What a model folder tells about its tokenizer, for clients that prepare their own prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.text.chat import CONFIG_FILE, DEFAULT, read_templates


def read_tokenizer_info(folder: Path) -> dict[str, Any]:
    """Return the tokenizer's config with named tokens as plain texts, and the chat template.

    Raises:
        ReasonedError: The config is malformed.
    """
    info: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config = folder / CONFIG_FILE
    if config.is_file():
        try:
            found = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            message = f"{CONFIG_FILE} is not JSON: {error}"
            raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
        if isinstance(found, dict):
            info |= {name: _plain(value) for name, value in found.items()}
    template = read_templates(folder).get(DEFAULT)
    if template is not None:
        info["chat_template"] = template
    return info


def _plain(value: Any) -> Any:
    """Return a token's text where the config describes it as an object."""
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return value["content"]
    return value
