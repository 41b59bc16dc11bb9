"""Chats through adapters' own templates: rendered in trial processes, one per adapter at a time.

So a template that computes for long holds up nobody but the requests of its own adapter, and ends.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Final

from graft_runtime.errors import InvalidRequestError, NotReadyError, OverloadedError
from graft_runtime.ipc.messages import GuestTemplate
from graft_runtime.ipc.trial import TrialFailedError, TrialProcesses, TrialStartError
from graft_runtime.text.conversation import Draft
from graft_runtime.text.guest_template import COMMAND, TemplateAnswer, TemplateQuestion

MAX_WAITING: Final = 256


class GuestRenderer:
    """Applies adapters' templates to chats."""

    def __init__(self) -> None:
        """Start nothing yet: few adapters bring a template."""
        self._processes = TrialProcesses(TemplateAnswer)
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._waiting = 0

    async def render(self, template: GuestTemplate, draft: Draft) -> str:
        """Return what a template writes for a conversation.

        Raises:
            InvalidRequestError: It refuses the messages, or takes too much for them.
            OverloadedError: Too many others wait.
            NotReadyError: There is no process to be had.
        """
        if self._waiting >= MAX_WAITING:
            message = "too many chats are waiting for their adapters' templates"
            raise OverloadedError(message, retry_after_seconds=1)
        question = TemplateQuestion(template.source, draft.messages, draft.variables)
        turn = self._turns.setdefault(template.source, asyncio.Lock())
        self._waiting += 1
        try:
            async with turn:
                answer = await self._processes.ask(COMMAND, question)
        except TrialFailedError as error:
            message = f"the adapter's chat template cannot be applied: {error}"
            raise InvalidRequestError(message, param="messages") from error
        except TrialStartError as error:
            message = "adapters' chat templates cannot be applied now"
            raise NotReadyError(message, retry_after_seconds=5) from error
        finally:
            self._waiting -= 1
        if answer.error is not None:
            raise InvalidRequestError(answer.error, param="messages")
        return answer.text

    async def close(self) -> None:
        """End the processes."""
        await self._processes.close()
