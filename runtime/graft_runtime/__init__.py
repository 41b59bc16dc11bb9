"""The data plane: one pod that serves one base model and its adapters."""

__version__ = "0.1.0"
