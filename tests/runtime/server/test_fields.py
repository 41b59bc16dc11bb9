"""Fields of all surfaces: no body makes their check long."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, Final

import pytest
from pydantic import ValidationError

from graft_runtime import server
from graft_runtime.errors import RequestError
from graft_runtime.server.fields import Fields

MANY: Final = 5_000
MOST_FAULTS: Final = 400
"""A list with a limit of its own may tell as many as it has places."""
HOSTILE: Final[Mapping[str, Any]] = {
    "texts": ["a"] * MANY,
    "numbers": [1] * MANY,
    "lists": [[]] * MANY,
    "objects": [{}] * MANY,
    "numbers by name": {str(key): 1 for key in range(MANY)},
    "texts by name": {str(key): "a" for key in range(MANY)},
    "lists by name": {str(key): [] for key in range(MANY)},
}


def models() -> list[type[Fields]]:
    """Return the fields of every surface; what `shapes` holds is only described by it."""
    for module in pkgutil.walk_packages(server.__path__, f"{server.__name__}."):
        importlib.import_module(module.name)
    read = {model for model in _below(Fields) if not model.__module__.endswith(".shapes")}
    return sorted(read, key=lambda model: (model.__module__, model.__name__))


def _below(model: type[Fields]) -> Iterator[type[Fields]]:
    for each in model.__subclasses__():
        yield each
        yield from _below(each)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_a_long_list_of_faults_is_not_written_down(model: type[Fields]) -> None:
    for name in model.model_fields:
        for form, value in HOSTILE.items():
            assert num_faults(model, {name: value}) < MOST_FAULTS, (name, form)


def num_faults(model: type[Fields], body: Mapping[str, Any]) -> int:
    """Return how many faults the library finds; a refusal of the surface's own is one."""
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    except RequestError:
        return 1
    return 0
