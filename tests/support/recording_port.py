"""An adapter port that loads nothing and remembers what it was asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graft_runtime.errors import RequestError
from graft_runtime.server.adapter_port import Blend
from tests.support.fake_backend import ADAPTER


@dataclass
class RecordingPort:
    """Every name it gives is the fake backend's adapter."""

    asked: list[Any] = field(default_factory=list)
    refusal: RequestError | None = None

    async def load(self, name: str, uri: str, *, in_place: bool) -> None:
        self._note(("load", name, uri, in_place))

    async def unload(self, name: str) -> None:
        self._note(("unload", name))

    async def demand(self, uri: str) -> str:
        self._note(("demand", uri))
        return ADAPTER

    async def blend(self, blend: Blend) -> str:
        self._note(blend)
        return ADAPTER

    def _note(self, what: Any) -> None:
        self.asked.append(what)
        if self.refusal is not None:
            raise self.refusal
