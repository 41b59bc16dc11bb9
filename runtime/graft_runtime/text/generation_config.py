"""What a model's makers think it should be sampled with, where a client says nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

GENERATION_FILE: Final = "generation_config.json"
NAMES: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_sampling_defaults(folder: Path) -> Mapping[str, float]:
    """Return the values that a model folder recommends, by name; none without the file.

    Raises:
        ReasonedError: The file is malformed.
    """
    file = folder / GENERATION_FILE
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        message = f"{GENERATION_FILE} is not JSON: {error}"
        raise ReasonedError(Reason.MALFORMED_ARTIFACT, message) from error
    if not isinstance(config, dict):
        return {}
    found = {name: config.get(name) for name in NAMES}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
