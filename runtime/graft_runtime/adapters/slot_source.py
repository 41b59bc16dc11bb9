"""What a slot is filled from: one slot file, or several that are added up with weights.

Two revisions of one source have the same weights and share one slot. Knows no file's content.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SlotShare:
    """One slot file's part."""

    path: Path
    weight: float = 1.0
    """What its update is multiplied with."""


@dataclass(frozen=True)
class SlotSource:
    """All parts of a slot. The updates add up, so the pages of the parts lie beside one another."""

    shares: tuple[SlotShare, ...]

    @classmethod
    def of(cls, path: Path | str) -> SlotSource:
        """Return the source that is one file as it is."""
        return cls((SlotShare(Path(path)),))
