"""What an operator has asked of the Kubernetes API, read from its metrics page."""

from __future__ import annotations

import re
from collections import Counter

WRITES = frozenset({"apply", "create", "delete", "event", "nudge", "patch", "status"})


def api_calls(metrics: str) -> Counter[str]:
    """Return how many requests there were, by verb and kind: ``apply ConfigMap``."""
    found: Counter[str] = Counter()
    pattern = r"^graft_operator_api_calls_total{(.*)} (\S+)$"
    for labels, value in re.findall(pattern, metrics, re.MULTILINE):
        fields = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found[f"{fields['verb']} {fields['kind']}"] += int(float(value))
    return found


def is_write(call: str) -> bool:
    """Tell whether a verb with its kind changes something."""
    return call.split(maxsplit=1)[0] in WRITES
