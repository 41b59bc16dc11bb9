"""Writes down every value that a field of an object takes, as a watch tells them."""

from __future__ import annotations

import subprocess
import threading
from dataclasses import dataclass, field
from typing import Self

from e2e.cluster.processes import wait_until
from e2e.cluster.tools import Kubectl


@dataclass
class History:
    """The values of a field, from the first to the last, for as long as the `with` block lasts."""

    kubectl: Kubectl
    thing: str
    path: str
    """A JSON path, for instance `.spec.replicas`."""
    values: list[str] = field(default_factory=list)
    """Without repetitions; empty where the field was missing."""
    _kubectl: list[subprocess.Popen[str]] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        template = f"--output=jsonpath={{{self.path}}}{{'\\n'}}"
        command = self.kubectl.command("get", self.thing, "--watch", template)
        environment = dict(self.kubectl.environment)
        watch = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        reader = threading.Thread(target=self._read, args=(watch,))
        reader.start()
        self._kubectl.append(watch)
        self._readers.append(reader)
        wait_until(lambda: self.values, f"the first {self.path} of {self.thing}", seconds=30)
        return self

    def __exit__(self, *_: object) -> None:
        for watch, reader in zip(self._kubectl, self._readers, strict=True):
            with watch:  # closes its output and waits for its end
                watch.terminate()
                reader.join()

    def _read(self, watch: subprocess.Popen[str]) -> None:
        assert watch.stdout is not None
        for line in watch.stdout:
            value = line.strip()
            if [value] != self.values[-1:]:
                self.values.append(value)
