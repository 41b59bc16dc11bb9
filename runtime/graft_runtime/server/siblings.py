"""The choices of one request: how many there are, and when the last of them has ended.

Shared by the jobs that `choices.fork` makes of one; `record` tells it of each end.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Siblings:
    """All choices of one request."""

    count: int = 1
    num_ended: int = 0
    longest: int = 0
    """Tokens of the longest output among those that have ended."""

    def ended(self, num_output: int) -> bool:
        """Note the end of one; tell whether it was the last.

        Args:
            num_output: Its length, tokens.
        """
        self.num_ended += 1
        self.longest = max(self.longest, num_output)
        return self.num_ended == self.count
