"""`graft operator`: settings from the command line, logs to stderr, then the operator itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from graft_operator.handlers.operator import run_operator
from graft_operator.settings import ControlSettings, OperatorSettings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(options: Mapping[str, Any], *, verbose: bool) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        OperatorError: It could not go on; Kubernetes starts a new one.
        AccessError: No credentials for a cluster were found.
    """
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("graft_operator").setLevel(logging.DEBUG if verbose else logging.INFO)
    # kopf tells of every object it sees.
    logging.getLogger("kopf").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    given = {name: value for name, value in options.items() if value is not None}
    names = ("runtime_image", "template_revision", "operator_namespace")
    control = ControlSettings(**{name: given.pop(name) for name in names if name in given})
    asyncio.run(run_operator(OperatorSettings(**given, control=control)))
