"""Chooses the attention backend for a model's cache: the first whose declared features suffice."""

from __future__ import annotations

import logging

from graft_runtime.layers.attention import gather, varlen
from graft_runtime.layers.attention.base import AttentionBackend, AttentionTraits, PagedKv
from graft_runtime.layers.attention.cpu import CpuAttention

logger = logging.getLogger(__name__)


def choose_attention(kv: PagedKv, traits: AttentionTraits) -> AttentionBackend:
    """Make the fastest backend that can do what the model asks."""
    if kv.keys_NBKD[0].device.type == "cpu":
        return CpuAttention(kv, traits)
    lacking = varlen.FEATURES.lacks(kv, traits)
    kernel = varlen.find_kernel() if lacking is None else None
    if kernel is not None:
        logger.info("attention", extra={"backend": "varlen"})
        return varlen.VarlenAttention(kv, traits, kernel)
    lacking = lacking or "a torch that has it"
    logger.info("attention", extra={"backend": "gather", "varlen_lacks": lacking})
    return gather.GatherAttention(kv, traits)
