"""What can go wrong with the test cluster that a person has to hear about."""

from __future__ import annotations


class LabError(Exception):
    """The test cluster cannot be built, started, used or removed; the message says why."""
