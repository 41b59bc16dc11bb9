"""The base model as a pod wants it: what to ask the loader for, and when to ask again.

Decides alone: neither the loader nor a clock is known here. `graft_runtime.pod.pod` passes on what
the loader says and what time it is.
"""

from __future__ import annotations

from graft_protocol.config import ModelSettings
from graft_protocol.reasons import Reason
from graft_runtime.adapters.revision import retry_seconds
from graft_runtime.ipc.messages import ModelPrepared, ModelRefused, PrepareModel


class ModelWish:
    """One wish for as long as the pod lives; whatever it is refused for may mend itself."""

    def __init__(self, settings: ModelSettings, pod: str) -> None:
        self._settings = settings
        self._pod = pod
        self._digest = settings.digest
        self._failures = 0
        self._retry_at: float | None = None
        self.refusal: tuple[Reason, str] | None = None
        """Why the last attempt failed; None once one has succeeded."""

    def ask(self) -> PrepareModel:
        """Return what to ask for now. Nothing more is due until that is answered."""
        self._retry_at = None
        return PrepareModel(self._settings.uri, self._digest, self._settings.credential)

    def refused(self, message: ModelRefused, now: float) -> float:
        """Note an attempt that failed; return the pause before the next, growing as an adapter's.

        Whatever the reason: a source may be mended without any change to the pod, and nobody but
        the pod would notice.
        """
        pause = retry_seconds(self._failures, f"{self._pod} model")
        self._failures += 1
        self._retry_at = now + pause
        self.refusal = Reason(message.reason), message.message
        return pause

    def fulfilled(self, message: ModelPrepared) -> None:
        """Note what was found: the same bytes from now on, whatever the source holds later."""
        self._digest = message.digest
        self._failures, self._retry_at, self.refusal = 0, None, None

    def is_due(self, now: float) -> bool:
        """Tell whether to ask again."""
        return self._retry_at is not None and self._retry_at <= now
