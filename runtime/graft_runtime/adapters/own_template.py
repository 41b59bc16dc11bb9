"""Whether an adapter's own chat template can be used. The loader asks; only a trial runs it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from graft_protocol.digest import TEMPLATE_FILE
from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.messages import GuestTemplate
from graft_runtime.ipc.trial import TrialFailedError, TrialProcesses, TrialStartError
from graft_runtime.sources.cache_entry import CacheEntry
from graft_runtime.text.guest_template import (
    COMMAND,
    MAX_BYTES,
    TemplateAnswer,
    TemplateQuestion,
)


class TemplateInspector:
    """Looks at the templates that adapters bring along."""

    def __init__(self) -> None:
        """Start nothing yet: few adapters bring one."""
        self._processes = TrialProcesses(TemplateAnswer)

    async def inspect(self, folder: Path) -> GuestTemplate:
        """Return the template in an adapter's folder.

        Raises:
            ReasonedError: MalformedArtifact: it is too long, no text, or cannot be compiled.
                InternalError: nobody could look at it.
        """
        source = await asyncio.to_thread(_read, folder / TEMPLATE_FILE)
        try:
            answer = await self._processes.ask(COMMAND, TemplateQuestion(source))
        except TrialFailedError as error:
            raise _malformed(str(error)) from error
        except TrialStartError as error:
            raise ReasonedError(Reason.INTERNAL_ERROR, str(error)) from error
        if answer.error is not None:
            raise _malformed(answer.error)
        return GuestTemplate(source, answer.reads)

    async def close(self) -> None:
        """End the processes."""
        await self._processes.close()


def has_template(entry: CacheEntry) -> bool:
    """Whether a chat template belongs to an adapter's content."""
    return any(file.path == TEMPLATE_FILE for file in entry.files)


def _read(file: Path) -> str:
    if file.stat().st_size > MAX_BYTES:
        raise _malformed(f"it is longer than {MAX_BYTES} bytes")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _malformed("it is not UTF-8") from error


def _malformed(fault: str) -> ReasonedError:
    return ReasonedError(Reason.MALFORMED_ARTIFACT, f"{TEMPLATE_FILE}: {fault}")
