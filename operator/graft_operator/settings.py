"""Settings of the control plane: made once at the door, never changed afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from graft_operator.constants import TEMPLATE_NEWEST


@dataclass(frozen=True)
class ControlSettings:
    """How the control loop runs, in a cluster and locally."""

    workers: int = 8
    """Objects reconciled at the same time."""
    poll_busy_seconds: float = 0.2
    """Pause between two reads of a pod's report while something is on its way."""
    poll_idle_seconds: float = 2.0
    """The same while nothing is; also the longest pause where a pod gives no report."""
    polls_busy_per_second: float = 100.0
    """Most reports read in a second while something is on its way: the more pods, the rarer each
    is asked. One read costs about 0.3 ms of CPU."""
    polls_idle_per_second: float = 25.0
    """The same while nothing is, which bounds what an operator costs at rest."""
    report_timeout_seconds: float = 5.0
    """Longest wait for a report."""
    unreachable_seconds: float = 15.0
    """How long a pod that stopped answering keeps its last report. Shorter than this, a machine
    that is busy for a moment would turn the status of every adapter twice; a process that ended is
    noticed by its pod's conditions."""
    nudge_seconds: float = 1.0
    """Shortest time between two nudges of one pod."""
    resync_seconds: float = 300.0
    """Time between two full passes that repair whatever was missed."""
    backoff_first_seconds: float = 0.5
    """Pause after an object's first failure; it doubles with each further one."""
    backoff_max_seconds: float = 30.0
    """Longest such pause: after an outage nothing is behind for longer."""
    runtime_image: str = "graft-runtime:0.1.0"
    """Image of the runtime if a spec names none."""
    template_revision: int = TEMPLATE_NEWEST
    """Version of the pod template that new services get, and others are offered."""
    operator_namespace: str = ""
    """Where the operator itself runs; empty if that is nowhere in the cluster."""
    optional_seconds: float = 30.0
    """Pause between two looks at children of kinds that are not watched, where some are wanted:
    what others wrote into them lasts as long. One read of each."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose services are served; empty serves all."""

    def serves(self, namespace: str) -> bool:
        """Whether the services of a namespace are served."""
        return not self.namespaces or namespace in self.namespaces


@dataclass(frozen=True)
class LocalSettings:
    """How local mode runs."""

    folder: Path
    """Where the manifests are."""
    runtime_command: tuple[str, ...] = ()
    """Replaces the container's command; empty runs that command as installed."""
    first_port: int = 0
    """Port of the first pod, the next pods take the next ones; 0 picks free ones."""
    scan_seconds: float = 0.1
    """Pause between two looks at the folder. A changed file is read once it rests for one pause."""
    probe_seconds: float = 0.1
    """Pause between two readiness probes of a pod that is not ready."""
    probe_ready_seconds: float = 1.0
    """The same for a pod that is ready."""
    restart_first_seconds: float = 0.5
    """Pause before a crashed process is started again; it doubles with each crash."""
    restart_max_seconds: float = 30.0
    """Longest such pause."""
    stop_seconds: float = 30.0
    """How long processes may take to stop when local mode ends."""
    environment: dict[str, str] = field(default_factory=dict)
    """Additional environment of the processes."""


@dataclass(frozen=True)
class OperatorSettings:
    """How the operator runs on a Kubernetes API."""

    namespaces: tuple[str, ...] = ()
    """Namespaces that are served; empty serves the whole cluster."""
    tenant_namespaces: tuple[str, ...] = ()
    """Further namespaces, of which the LoraAdapters alone are looked at."""
    kubeconfig: Path | None = None
    """File with credentials; None looks at $KUBECONFIG, the service account, ~/.kube/config."""
    context: str | None = None
    """Context of that file; None takes its current one."""
    health_host: str = "0.0.0.0"  # noqa: S104 - a pod's own network namespace
    """Address on which probes and metrics are answered."""
    health_port: int = 8080
    """Port of the same; 0 picks a free one."""
    request_timeout_seconds: float = 30.0
    """Longest wait for the answer to one API request."""
    throttled_tries: int = 4
    """How often a request is made that the API server turns away with 429."""
    page_size: int = 500
    """Objects per page of the audit's lists. The watches' own first lists have no pages."""
    audit_seconds: float = 30.0
    """Pause between two complete lists that repair what a watch has missed."""
    dead_watch_seconds: float = 60.0
    """How long a watch may owe a change that a list has shown, before the process gives up."""
    watch_seconds: int = 300
    """How long the API server may serve one watch request. Sources: kopf issues 585 and 980."""
    watch_quiet_seconds: float = 70.0
    """How long a watch may be without even a bookmark (the server sends one a minute)."""
    watch_workers: int = 64
    """Events handled at the same time."""
    secret_seconds: float = 30.0
    """Pause between two looks at a Secret that a spec names: it is read by name, never watched."""
    event_repeat_seconds: float = 300.0
    """Shortest time between two equal Events about one object."""
    stuck_seconds: float = 300.0
    """How long a key may wait for a worker before the process counts as stuck."""
    control: ControlSettings = field(default_factory=ControlSettings)
    """The control loop behind it."""
