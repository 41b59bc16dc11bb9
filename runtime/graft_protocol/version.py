"""The version of the contract between the planes."""

from __future__ import annotations

PROTOCOL_VERSION = 4
"""Raised when an entry or a report gains a meaning that an older peer would misread.

A shard carries the lowest version that suffices for its entries (``minProtocol``); a runtime that
is older than that refuses the entries with ``RuntimeTooOld`` instead of ignoring a field.
"""
