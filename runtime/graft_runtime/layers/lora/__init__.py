"""Batched low-rank adapters."""
