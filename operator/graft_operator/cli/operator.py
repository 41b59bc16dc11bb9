"""`graft operator`: settings from the command line, logs to stderr, then the operator itself."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from graft_operator.handlers.operator import run_operator
from graft_operator.log import configure
from graft_operator.settings import ControlSettings, OperatorSettings


def run(options: Mapping[str, Any], *, verbose: bool) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        OperatorError: It could not go on; Kubernetes starts a new one.
        AccessError: No credentials for a cluster were found.
    """
    configure(options["log_format"], verbose=verbose)
    given = {name: value for name, value in options.items() if value is not None}
    del given["log_format"]
    names = ("runtime_image", "template_revision", "operator_namespace")
    control = ControlSettings(**{name: given.pop(name) for name in names if name in given})
    asyncio.run(run_operator(OperatorSettings(**given, control=control)))
