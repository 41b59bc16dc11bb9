"""Puts the operator together and runs it until it is told to stop or cannot go on.

Order matters: everything is listed once before anything is reconciled, so that what has not been
read yet is never taken for what does not exist.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import kopf

from graft_operator.cluster.base import Change
from graft_operator.cluster.kubernetes import KubernetesCluster
from graft_operator.cluster.kubernetes_access import Access
from graft_operator.cluster.kubernetes_client import KubernetesClient
from graft_operator.cluster.kubernetes_kinds import WATCHED, Kind
from graft_operator.constants import KIND_ADAPTER
from graft_operator.errors import GraftError, OperatorError
from graft_operator.handlers.audit import WatchAudit
from graft_operator.handlers.watches import create_registry, kopf_settings
from graft_operator.health import HealthServer
from graft_operator.metrics import OperatorMetrics
from graft_operator.reconcile.controller import Controller
from graft_operator.settings import OperatorSettings

log = logging.getLogger(__name__)

Scopes = tuple[str | None, ...]
"""Namespaces, or one None for the whole cluster."""


@dataclass
class Operator:
    """The parts of a running operator."""

    settings: OperatorSettings
    access: Access
    cluster: KubernetesCluster
    controller: Controller
    audit: WatchAudit
    metrics: OperatorMetrics
    is_primed: bool = False


def create_operator(settings: OperatorSettings) -> Operator:
    """Wire the parts; nothing runs yet."""
    metrics = OperatorMetrics()
    access = Access(settings.kubeconfig, settings.context)
    client = KubernetesClient(
        access,
        timeout_seconds=settings.request_timeout_seconds,
        throttled_tries=settings.throttled_tries,
        on_call=lambda call: metrics.count_api_call(*call),
    )
    cluster = KubernetesCluster(client, settings)
    controller = Controller(
        cluster,
        replace(settings.control, namespaces=settings.namespaces),
        secret_ttl_seconds=settings.secret_seconds,
        on_reconciled=lambda key, outcome, seconds: metrics.observe_reconcile(
            key.kind, outcome, seconds
        ),
    )
    audit = WatchAudit(
        cluster, controller.cache, _taking_in(controller, metrics), metrics, settings
    )
    _show(controller, metrics)
    return Operator(settings, access, cluster, controller, audit, metrics)


def _taking_in(controller: Controller, metrics: OperatorMetrics) -> Callable[[Change], None]:
    def take_in(change: Change) -> None:
        if change.manifest["kind"] == KIND_ADAPTER:
            is_gone = change.type == "DELETED"
            timer = metrics.ready_timer
            (timer.forget if is_gone else timer.see)(change.manifest)
        controller.on_change(change)

    return take_in


def _show(controller: Controller, metrics: OperatorMetrics) -> None:
    queue = controller.queue
    metrics.watch_gauge("queue_depth", "Objects that wait for a worker", lambda: queue.depth)
    metrics.watch_gauge(
        "queue_oldest_seconds", "Longest that one has waited", lambda: queue.oldest_seconds
    )
    metrics.watch_gauge("pods", "Runtime pods", lambda: len(controller.cache.keys("Pod")))
    metrics.watch_objects(controller.own_objects)
    metrics.watch_gauge(
        "pods_out_of_sync",
        "Runtime pods that have not reported the set they should have",
        controller.count_pods_out_of_sync,
    )


async def run_operator(settings: OperatorSettings, stop: asyncio.Event | None = None) -> None:
    """Run until SIGTERM, SIGINT or `stop`.

    Raises:
        DeadWatchError: A watch died; the process has to be replaced.
        OperatorError: The watches ended by themselves, or could not begin.
        AccessError: No credentials were found.
    """
    operator = create_operator(settings)
    await operator.access.configuration()
    health = HealthServer(
        settings.health_host,
        settings.health_port,
        live=_live_checks(operator),
        ready={"start": lambda: "" if operator.is_primed else "the first lists are not complete"},
        metrics=operator.metrics,
    )
    async with operator.cluster, health:
        log.info("probes and metrics on port %d", health.port)
        await _until_stopped(operator, stop or asyncio.Event())


def _live_checks(operator: Operator) -> dict[str, Callable[[], str]]:
    limit = operator.settings.stuck_seconds

    def queue() -> str:
        seconds = operator.controller.queue.oldest_seconds
        return f"an object waits for {seconds:.0f} s" if seconds > limit else ""

    def audit() -> str:
        seconds = operator.audit.age()
        return f"has not moved for {seconds:.0f} s" if seconds > limit else ""

    return {"queue": queue, "audit": audit}


async def _until_stopped(operator: Operator, stop: asyncio.Event) -> None:
    """Run kopf as the outer life: it owns the signals; our work begins and ends within it."""
    registries = _registries(operator)
    first = next(iter(registries.values()))
    control: list[asyncio.Task[None]] = []

    async def start(**_: object) -> None:
        control.append(asyncio.create_task(_control(operator, stop), name="control"))

    async def end(**_: object) -> None:
        for task in control:
            task.cancel()
        await asyncio.gather(*control, return_exceptions=True)

    async def end_others(**_: object) -> None:
        # Each kopf waits for all tasks that it finds, the others' too, before it returns.
        stop.set()

    kopf.on.startup(registry=first)(start)
    kopf.on.cleanup(registry=first)(end)
    for registry in registries.values():
        kopf.on.cleanup(registry=registry)(end_others)
    watches = [
        asyncio.create_task(_watch(operator.settings, registry, scopes, stop))
        for scopes, registry in registries.items()
    ]
    await asyncio.gather(*watches, return_exceptions=True)
    for task in (*watches, *control):
        if task.done() and not task.cancelled():
            task.result()


def _registries(operator: Operator) -> dict[Scopes, kopf.OperatorRegistry]:
    """Return the handlers by where they look: kopf watches all its kinds in the same places."""
    kinds: defaultdict[Scopes, list[Kind]] = defaultdict(list)
    for kind in WATCHED:
        kinds[operator.cluster.scopes(kind)].append(kind)
    deliver, connect = operator.audit.watched, operator.access.connection
    return {scopes: create_registry(some, deliver, connect) for scopes, some in kinds.items()}


async def _watch(
    settings: OperatorSettings,
    registry: kopf.OperatorRegistry,
    scopes: Scopes,
    stop: asyncio.Event,
) -> None:
    """Run one kopf; when it ends, for whatever reason, so do the others."""
    namespaces = [scope for scope in scopes if scope is not None]
    try:
        await kopf.operator(
            registry=registry,
            settings=kopf_settings(settings),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
        )
    except GraftError:
        raise
    except Exception as error:
        raise OperatorError(f"the watches ended: {type(error).__name__}: {error}") from error
    finally:
        stop.set()


async def _control(operator: Operator, stop: asyncio.Event) -> None:
    try:
        await operator.audit.prime()
        await operator.controller.pods_settled()
        operator.is_primed = True
        log.info("everything is listed; reconciling")
        async with operator.controller:
            await operator.audit.run()
    finally:
        await operator.controller.poller.stop()
        stop.set()
