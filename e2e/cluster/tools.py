"""Runs kubectl and Helm against one cluster. The stories and the cluster's own set-up use it."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from e2e.cluster.errors import LabError

DEADLINE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl, bound to a cluster and, if wanted, to a namespace."""

    environment: Mapping[str, str] = field(repr=False)
    """Says where the cluster is (KUBECONFIG) and where the program is (PATH)."""
    context: str = ""
    namespace: str = ""

    def run(
        self, *arguments: str, stdin: str | None = None, seconds: float = DEADLINE_SECONDS
    ) -> str:
        """Run a command and return what it printed.

        Raises:
            LabError: It failed, or took too long.
        """
        __tracebackhide__ = True
        return run_tool(self.command(*arguments), self.environment, stdin=stdin, seconds=seconds)

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command, for those who start it themselves."""
        target = ["--context", self.context] if self.context else []
        target += ["--namespace", self.namespace] if self.namespace else []
        return ["kubectl", *target, *arguments]

    def succeeds(self, *arguments: str) -> bool:
        """Tell whether a command succeeds."""
        try:
            self.run(*arguments)
        except LabError:
            return False
        return True

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return the parsed answer of `kubectl get`."""
        answer: dict[str, Any] = json.loads(self.run("get", *arguments, "--output", "json"))
        return answer

    def apply(self, manifests: str, *flags: str) -> str:
        """Apply manifests given as text, the way a user does."""
        return self.run("apply", *flags, "--filename", "-", stdin=manifests)

    def within(self, namespace: str) -> Kubectl:
        """Return the same with another namespace."""
        return Kubectl(self.environment, self.context, namespace)


@dataclass(frozen=True, slots=True)
class Helm:
    """Helm, bound to the same cluster."""

    environment: Mapping[str, str] = field(repr=False)
    context: str = ""

    def run(self, *arguments: str, seconds: float = DEADLINE_SECONDS) -> str:
        """Run a command and return what it printed.

        Raises:
            LabError: It failed, or took too long.
        """
        __tracebackhide__ = True
        target = ["--kube-context", self.context] if self.context else []
        return run_tool(["helm", *target, *arguments], self.environment, seconds=seconds)


def run_tool(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: str | None = None,
    seconds: float = DEADLINE_SECONDS,
) -> str:
    """Run a program to its end and return its standard output.

    Raises:
        LabError: It is not there, failed (with what it wrote on stderr), or took too long.
    """
    __tracebackhide__ = True  # a failed story shows its own line and the message
    words = shlex.join(command)
    try:
        done = subprocess.run(
            command,
            input=stdin,
            env=dict(environment),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{words}` took over {seconds:.0f} s") from error
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        raise LabError(f"`{words}` failed: {(done.stderr or done.stdout).strip()[-4000:]}")
    return done.stdout
