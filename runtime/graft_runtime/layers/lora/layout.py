"""How an adapter lies in a slot file and in the device slabs: groups, names, pages, header.

Knows no torch and no model family; the converter writes this layout and the slot pool reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from graft_protocol.reasons import Reason
from graft_runtime.errors import ReasonedError

PAGE_RANK = 16
"""Ranks held by one page: the smallest tile that tensor cores take, so padding below it is free."""

SLOT_FORMAT = "graft-slot-1"
"""Name of this layout; a reader refuses every other."""


@dataclass(frozen=True)
class LoraSlice:
    """One linear layer inside a fused group."""

    module: str
    """Name of the module in the checkpoint, for instance ``q_proj``."""
    out_features: int


@dataclass(frozen=True)
class LoraGroup:
    """Linear layers that read the same input and are computed as one product."""

    name: str
    in_features: int
    slices: tuple[LoraSlice, ...]

    @property
    def out_features(self) -> int:
        """Width of the fused output."""
        return sum(part.out_features for part in self.slices)

    @property
    def slice_starts(self) -> tuple[int, ...]:
        """Where each slice begins in the fused output."""
        starts, offset = [], 0
        for part in self.slices:
            starts.append(offset)
            offset += part.out_features
        return tuple(starts)

    def a_shape(self, pages: int) -> tuple[int, int, int, int]:
        """Shape of A: ``[pages, slices, PAGE_RANK, in_features]``."""
        return (pages, len(self.slices), PAGE_RANK, self.in_features)

    def b_shape(self, pages: int) -> tuple[int, int, int]:
        """Shape of transposed B: ``[pages, PAGE_RANK, out_features]``."""
        return (pages, PAGE_RANK, self.out_features)


class AdaptableModel(Protocol):
    """What a model tells about its adaptable layers."""

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""

    @property
    def lora_groups(self) -> tuple[LoraGroup, ...]:
        """Groups of every decoder layer."""

    @property
    def lm_head_group(self) -> LoraGroup:
        """The output projection."""


@dataclass(frozen=True)
class SlotHeader:
    """The metadata of a slot file."""

    digest: str
    rank: int
    """The highest rank of any module."""
    pages: int
    dtype: str
    """``float32`` or ``bfloat16``: the serving dtype the tensors are already in."""
    arch: str
    """`layout_hash` of the model the file was made for."""

    def to_metadata(self) -> dict[str, str]:
        """Return the header in the form safetensors keeps."""
        return {
            "format": SLOT_FORMAT,
            "digest": self.digest,
            "rank": str(self.rank),
            "pages": str(self.pages),
            "dtype": self.dtype,
            "arch": self.arch,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Read a header.

        Raises:
            ReasonedError: The file is not a slot file of this layout; convert it again.
        """
        if metadata.get("format") != SLOT_FORMAT:
            found = metadata.get("format")
            raise ReasonedError(
                Reason.MALFORMED_ARTIFACT, f"slot file of format {found!r}, not {SLOT_FORMAT!r}"
            )
        try:
            header = cls(
                digest=metadata["digest"],
                rank=int(metadata["rank"]),
                pages=int(metadata["pages"]),
                dtype=metadata["dtype"],
                arch=metadata["arch"],
            )
        except (KeyError, ValueError) as error:
            raise ReasonedError(
                Reason.MALFORMED_ARTIFACT, f"slot file header lacks or misspells {error}"
            ) from error
        if header.rank < 1 or header.pages != pages_for(header.rank):
            raise ReasonedError(
                Reason.MALFORMED_ARTIFACT,
                f"slot file of rank {header.rank} claims {header.pages} pages",
            )
        return header


def pages_for(rank: int) -> int:
    """Return the number of pages an adapter of this rank takes."""
    return -(-rank // PAGE_RANK)


def tensor_names(layer: int | None, group: str) -> tuple[str, str]:
    """Return the names of A and B in a slot file; ``layer`` is None for the output projection."""
    prefix = group if layer is None else f"layers.{layer}.{group}"
    return f"{prefix}.A", f"{prefix}.B"


def all_groups(model: AdaptableModel) -> list[tuple[int | None, LoraGroup]]:
    """List every adaptable group of a model with its layer, in slot file order."""
    placed: list[tuple[int | None, LoraGroup]] = [
        (layer, group) for layer in range(model.num_layers) for group in model.lora_groups
    ]
    placed.append((None, model.lm_head_group))
    return placed


def layout_hash(model: AdaptableModel) -> str:
    """Hash the shapes of every group: two models of one hash can share slot files."""

    def describe(group: LoraGroup) -> list[object]:
        return [
            group.name,
            group.in_features,
            [[part.module, part.out_features] for part in group.slices],
        ]

    shapes = [
        SLOT_FORMAT,
        PAGE_RANK,
        model.num_layers,
        [describe(group) for group in model.lora_groups],
        describe(model.lm_head_group),
    ]
    text = json.dumps(shapes, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
