"""Reads which tokens end a generation, from both config files of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.models.hf_config import ConfigReader, read_json_object


def read_eos_token_ids(config: ConfigReader, model_dir: Path, vocab_size: int) -> tuple[int, ...]:
    """Return the stop tokens of both files: chat checkpoints name the turn's end in the second.

    Raises:
        ReasonedError: A token is no number, or outside the vocabulary.
    """
    ids = list(config.token_ids("eos_token_id"))
    path = model_dir / "generation_config.json"
    if path.exists():
        ids += ConfigReader(read_json_object(path)).token_ids("eos_token_id")
    outside = [item for item in ids if not 0 <= item < vocab_size]
    if outside:
        message = f"eos_token_id {outside[0]} is outside the vocabulary of {vocab_size} tokens"
        raise ReasonedError(Reason.INVALID_CONFIG, message)
    return tuple(dict.fromkeys(ids))
