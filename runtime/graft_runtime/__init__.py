"""Graft's data plane: one base model and its adapters, served from one pod.

It knows nothing of custom resources or of the cluster; ``graft_protocol`` is all it shares.
"""

__version__ = "0.1.0"
