"""The story of one object, told again whenever something may have changed.

Observe, plan, act, conclude. No kopf here; handlers and local mode only hand over changes.
"""
