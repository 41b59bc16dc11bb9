"""Everything textual of one model, loaded once, in a thread, when the model's folder is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graft_runtime.errors import NotReadyError
from graft_runtime.text.chat import TOOL_USE, ChatTemplate, read_named_tokens
from graft_runtime.text.generation_config import read_sampling_defaults
from graft_runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelText:
    """A model's tokenizer, and its chat template if it has one."""

    tokenizer: Tokenizer
    chat: ChatTemplate | None
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    """What the model's makers recommend."""
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    """What ``bos_token`` and its like stand for, for templates of adapters."""
    tool_chat: ChatTemplate | None = None
    """The chat template for chats with tools, if the model has one of its own for them."""

    def chat_for(self, *, has_tools: bool) -> ChatTemplate | None:
        """Return the template for a chat, as transformers chooses it."""
        return self.tool_chat if has_tools and self.tool_chat is not None else self.chat

    @classmethod
    def load(cls, folder: Path) -> ModelText:
        """Read all from a model folder.

        Raises:
            ReasonedError: A file is missing or malformed.
        """
        tokenizer, chat = Tokenizer.load(folder), ChatTemplate.load(folder)
        defaults, named = read_sampling_defaults(folder), read_named_tokens(folder)
        return cls(tokenizer, chat, defaults, named, ChatTemplate.load(folder, TOOL_USE))


class ModelTextLoader:
    """Loads the text tools on first use; concurrent callers wait for one load."""

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        """Remember where to look.

        Args:
            folder: Returns the base model's folder, None until it is on disk.
        """
        self._folder = folder
        self._lock = asyncio.Lock()
        self._loaded: ModelText | None = None

    async def get(self) -> ModelText:
        """Return the tools.

        Raises:
            NotReadyError: The model is not on disk yet.
            ReasonedError: Its files cannot be used; the next call tries again.
        """
        if self._loaded is not None:
            return self._loaded
        folder = self._folder()
        if folder is None:
            raise NotReadyError("the model is still being fetched", retry_after_seconds=5)
        async with self._lock:
            if self._loaded is None:
                self._loaded = await asyncio.to_thread(ModelText.load, folder)
            return self._loaded
