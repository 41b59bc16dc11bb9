"""The ``logits_processors`` field: names of plugins with arguments, checked by the plugins."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from graft_runtime.errors import InvalidRequestError, PluginError
from graft_runtime.ipc.messages import ProcessorCall, Sampling
from graft_runtime.server.context import Frontend

FIELD: Final = "logits_processors"
MAX_PROCESSORS: Final = 8


def parse_processors(value: Any) -> tuple[ProcessorCall, ...]:
    """Read the field: each a name, or an object with a name and arguments.

    Names are those of entry points. vLLM's spelling (``qualname``, ``kwargs``) is read, too.

    Raises:
        ValueError: Another form; pydantic names the field.
    """
    if not isinstance(value, list) or len(value) > MAX_PROCESSORS:
        message = f"must be a list of at most {MAX_PROCESSORS} logits processors"
        raise ValueError(message)
    return tuple(map(_parse, value))


def _parse(value: Any) -> ProcessorCall:
    if isinstance(value, str):
        return ProcessorCall(value)
    given = {name: each for name, each in value.items() if each} if isinstance(value, dict) else {}
    name = given.pop("name", given.pop("qualname", None))
    arguments = given.pop("arguments", given.pop("kwargs", {}))
    if not isinstance(name, str) or not isinstance(arguments, dict) or given:
        message = "each is a name, or an object with `name` and `arguments`"
        raise ValueError(message)
    return ProcessorCall(name, arguments)


async def check_processors(frontend: Frontend, sampling: Sampling) -> Sampling:
    """Return the sampling with the arguments as the plugins want them.

    Raises:
        InvalidRequestError: A plugin is not there, or refuses its arguments.
        NotReadyError: The model's tokens are not known yet.
    """
    text = await frontend.texts.get()

    def check() -> tuple[ProcessorCall, ...]:
        vocab_size = text.tokenizer.vocab_size
        return tuple(frontend.plugins.check(call, vocab_size) for call in sampling.processors)

    try:
        calls = await asyncio.to_thread(check)
    except PluginError as error:
        raise InvalidRequestError(f"`{FIELD}`: {error}", param=FIELD) from error
    return msgspec.structs.replace(sampling, processors=calls)
