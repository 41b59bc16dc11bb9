"""Adapters: the desired set, the loader process, validation, device slots, their life."""
