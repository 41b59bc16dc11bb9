"""Two logits processors: one that decides from the tokens alone, one that looks at the scores.

Install this folder beside Graft (``pip install examples/logits_processors``), and requests can name
them: ``{"logits_processors": [{"name": "top-a", "arguments": {"a": 0.2}}]}``.

Shape legend: n rows that use the processor in this step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graft_runtime.sampling.interface import DeviceLogitsProcessor, HostLogitsProcessor, Row


class WindDown(HostLogitsProcessor):
    """Make a token, usually the end token, likelier with every token beyond a length.

    Arguments: ``token_id``; ``after``, a number of output tokens; ``strength``, which is added to
    the token's logit for each token beyond that.
    """

    def check(self, arguments: Mapping[str, Any], vocab_size: int) -> Mapping[str, Any]:
        """Accept whole numbers within the vocabulary and a finite strength."""
        token_id, after = arguments.get("token_id"), arguments.get("after", 0)
        strength = arguments.get("strength", 1.0)
        if arguments.keys() - {"token_id", "after", "strength"}:
            message = "takes token_id, after and strength"
            raise ValueError(message)
        if not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            message = f"token_id must be a token, 0 to {vocab_size - 1}"
            raise ValueError(message)
        if not isinstance(after, int) or after < 0:
            message = "after must be a number of tokens"
            raise ValueError(message)
        if not isinstance(strength, int | float) or not 0 < strength <= 100:
            message = "strength must be a number above 0, and 100 at most"
            raise ValueError(message)
        return {"token_id": token_id, "after": after, "strength": float(strength)}

    def bias(self, row: Row) -> Mapping[int, float]:
        """Add nothing before the length is reached."""
        beyond = len(row.tokens) - row.num_prompt - row.arguments["after"]
        if beyond <= 0:
            return {}
        return {row.arguments["token_id"]: beyond * row.arguments["strength"]}


class TopA(DeviceLogitsProcessor):
    """Keep the tokens whose probability is at least ``a`` times the square of the best one's.

    When the model is sure this leaves few tokens, when it is not it leaves many.
    """

    def check(self, arguments: Mapping[str, Any], vocab_size: int) -> Mapping[str, Any]:
        """Accept one number between 0 and 1."""
        del vocab_size
        a = arguments.get("a")
        if arguments.keys() != {"a"} or not isinstance(a, int | float) or not 0 < a <= 1:
            message = "needs a, a number above 0 and not above 1"
            raise ValueError(message)
        return {"a": float(a)}

    def apply(self, scores_nV: Any, rows: Sequence[Row]) -> None:
        """Do all rows at once: one row at a time would cost a launch each."""
        probs_nV = scores_nV.softmax(dim=-1)
        best_n1 = probs_nV.amax(dim=-1, keepdim=True)
        a_n1 = scores_nV.new_tensor([row.arguments["a"] for row in rows])[:, None]
        scores_nV.masked_fill_(probs_nV < a_n1 * best_n1 * best_n1, float("-inf"))
