"""Where transformers' attention leaves transformers: one function, registered by name.

Every attention module of a tapped model carries a tap; the function hands it queries, keys and
values and gets back what each token attends to. Imports transformers; see `models/read.py`.

Shape legend: T tokens, Q/K query and key/value heads, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.utils import logging

NAME = "graft"
_TAP = "graft_tap"


class Tap(Protocol):
    """Takes over attention for the modules it is set on."""

    def attend(
        self,
        module: nn.Module,
        q_TQD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        options: dict[str, Any],
    ) -> Tensor:
        """Attend for one module.

        Args:
            module: Which of the model's attention modules.
            q_TQD: Queries, in the model's dtype, rotated where the model rotates.
            k_TKD: Keys, likewise.
            v_TKD: Values.
            options: What the model's code asks of its attention: scale, window, soft cap.

        Returns:
            ``[T, Q, D]``, dtype of the queries.
        """


def set_tap(module: nn.Module, tap: Tap) -> None:
    """Let a module's attention go to the tap."""
    setattr(module, _TAP, tap)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Answer as transformers' attention functions do, for a batch of one packed row."""
    tap: Tap = getattr(module, _TAP)
    q_TQD, k_TKD, v_TKD = (heads[0].transpose(0, 1) for heads in (query, key, value))
    return tap.attend(module, q_TQD, k_TKD, v_TKD, options)[None], None


AttentionInterface.register(NAME, _attention)
# Our log says what is loaded, and every line of it is JSON.
logging.set_verbosity_error()
logging.disable_progress_bar()
