"""`graft`: the command line of the control plane."""

from graft_operator.cli.main import main

__all__ = ["main"]
