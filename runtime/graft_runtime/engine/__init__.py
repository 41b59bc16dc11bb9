"""Continuous batching: scheduler, KV cache, step plan, runner."""
