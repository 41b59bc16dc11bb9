"""Graft's control plane: custom resources in, child manifests and true statuses out.

It never imports the data plane; what the two say to each other is ``graft_protocol``.
"""

__version__ = "0.1.0"
