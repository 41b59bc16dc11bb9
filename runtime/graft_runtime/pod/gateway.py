"""The answering side of a pod: names become revisions, requests become streams of tokens.

Implements `graft_runtime.server.backend.Backend`. A request keeps the revision it was given from
its first token to its last.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from graft_protocol.config import RuntimeConfig
from graft_protocol.desired import TenantLimits
from graft_protocol.revisions import parse_revision
from graft_protocol.status import RevisionReport, RuntimeStatus
from graft_runtime.adapters.manager import AdapterManager
from graft_runtime.adapters.revision import Revision
from graft_runtime.adapters.routes import build_routes, unknown_model
from graft_runtime.errors import (
    AdapterUnavailableError,
    DeadlineError,
    DrainingError,
    EngineDiedError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    RequestError,
)
from graft_runtime.ipc.messages import Abort, Sampling, Submit, ToEngine, TokenOutput
from graft_runtime.pod.report import build_status
from graft_runtime.pod.state import PodState
from graft_runtime.pod.streams import Stream, Streams
from graft_runtime.server.backend import (
    BASE_ALIASES,
    DEFAULT_TERMS,
    Capacity,
    Health,
    ServedModel,
    Target,
    Terms,
    TokenChunk,
)
from graft_runtime.server.caller import may_use

SERVER_FAULT = 500
"""Lowest status of an error that is not the client's."""
HEARTBEAT_SECONDS = 30.0
"""An engine that has been silent for longer is taken for dead by the liveness probe."""


class Gateway:
    """Names, admission and streams of one pod."""

    def __init__(
        self,
        config: RuntimeConfig,
        state: PodState,
        manager: AdapterManager,
        post: Callable[[ToEngine], None],
        pod: str,
    ) -> None:
        self.streams = Streams(
            config.engine.max_running, config.engine.max_waiting, config.engine.max_waiting_tokens
        )
        self._config = config
        self._state = state
        self._manager = manager
        self._post = post
        self._pod = pod
        self._created = int(time.time())
        self.restarts: Callable[[], tuple[int, int]] = lambda: (0, 0)

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, tokens; 0 until the first engine has said so.

        It stays known while an engine is restarted, so that requests are held and not refused.
        """
        return self._state.max_model_len

    def tokenizer_dir(self) -> Path | None:
        """Where the base model's tokenizer lies; None until it is on disk."""
        return None if self._state.model is None else Path(self._state.model.path)

    def models(self) -> tuple[ServedModel, ...]:
        """List the base model, then every name that serves now for whoever asks."""
        model = self._config.model
        base = ServedModel(
            name=model.served_name,
            root=model.uri,
            parent=None,
            created=self._created,
            max_model_len=self.max_model_len or None,
            revision=None,
        )
        routes = build_routes(
            one
            for one in self._manager.revisions()
            if one.serves and not one.parts and may_use(one.entry.access)
        )
        adapters = ((name, route.choose("")) for name, route in sorted(routes.items()))
        return (
            base,
            *(
                ServedModel(
                    name=name,
                    root=revision.entry.uri,
                    parent=model.served_name,
                    created=self._created,
                    max_model_len=None,
                    revision=revision.entry.revision,
                )
                for name, revision in adapters
            ),
        )

    def resolve(self, model: str | None, route_key: str | None = None) -> Target:
        """Fix what a model name means for one request.

        Raises:
            ModelNotFoundError: Nothing serves or will serve under this name.
            AdapterUnavailableError: It is on its way.
        """
        base = self._config.model.served_name
        if model is None or model in BASE_ALIASES or model == base:
            return Target(base, None)
        key = route_key or secrets.token_hex(8)
        revision = self._route(model, key)
        template = None if revision.prepared is None else revision.prepared.template
        return Target(model, revision.entry.revision, key, template)

    def check_admission(self, prompt_chars: int) -> None:
        """Refuse early, before any work is put into a request.

        Raises:
            DrainingError: The pod is going down.
            OverloadedError: The queue is full.
        """
        if self._state.draining:
            raise DrainingError("The server is shutting down", retry_after_seconds=1)
        self.streams.check_room(prompt_chars)

    async def generate(
        self,
        request_id: str,
        token_ids: list[int],
        sampling: Sampling,
        target: Target,
        terms: Terms = DEFAULT_TERMS,
    ) -> AsyncGenerator[TokenChunk, None]:
        """Run a request; closing the generator frees all it holds at once.

        Raises:
            RequestError: It is refused or fails; which one says why.
        """
        longest = self._config.server.request_timeout_seconds
        deadline = time.monotonic() + min(longest, terms.timeout_seconds or longest)
        self.check_admission(0)
        self._check_tenant(target.revision, joining=1)
        stream = Stream(request_id, len(token_ids), _tenant(target.revision))
        self.streams.open(stream)
        ended = is_error = False
        try:
            revision = await self._hold(target, deadline)
            # The name may lead by now to another namespace, whose limits nobody has looked at.
            self.streams.move(stream, _tenant(revision))
            self._check_tenant(revision, joining=0)
            self.streams.send(stream, revision)
            self._post(_submit(stream, token_ids, sampling, terms, self._weight(revision)))
            while not ended:
                output = await _next_output(stream, deadline)
                ended = output.finish_reason is not None
                yield _chunk(output, stream.queue_seconds)
        except RequestError as error:
            is_error = error.status >= SERVER_FAULT
            raise
        finally:
            self.streams.close(stream)
            self.streams.count_end(stream.revision, is_error=is_error)
            if stream.sent and not ended:
                self._post(Abort(request_id))

    def status(self) -> RuntimeStatus:
        """Report on everything, for the operator."""
        return build_status(
            self._config,
            self._state,
            self._reports(),
            self._pod,
            self.restarts(),
        )

    def capacity(self) -> Capacity | None:
        """Tell clients what the pod was built for; None while there is no engine."""
        engine, model, limits = self._state.engine, self._state.model, self._config.engine
        if engine is None or model is None:
            return None
        return Capacity(
            max_requests=limits.max_running + limits.max_waiting,
            kv_tokens=engine.kv_blocks * engine.block_size,
            dtype=engine.dtype,
            device=engine.device,
            model_digest=model.digest,
        )

    def _reports(self) -> tuple[RevisionReport, ...]:
        reports = self._manager.reports(self.streams.active)
        self.streams.forget_outcomes({report.revision for report in reports})
        return tuple(
            report.model_copy(update=self.streams.outcomes(report.revision)._asdict())
            for report in reports
        )

    def health(self) -> Health:
        """Answer the probes."""
        state = self._state
        silent = time.monotonic() - state.heartbeat > HEARTBEAT_SECONDS
        live = not state.gave_up and not (state.engine is not None and silent)
        return Health(live=live, ready=state.ready, started=state.started, detail=state.detail)

    def _route(self, name: str, key: str) -> Revision:
        # Only this name's: every request comes here, and there may be thousands of adapters.
        named = (
            one
            for one in self._manager.revisions()
            # To one who may not use it, it looks as if it were not there.
            if one.answers_to(name) and may_use(one.entry.access)
        )
        route = build_routes(named).get(name)
        if route is None:
            raise unknown_model(name)
        return route.choose(key)

    def _check_tenant(self, revision: str | None, *, joining: int) -> None:
        """Refuse a request beyond what its adapter's namespace may have in flight.

        Asked before a request is held, too: held ones take room in the queue that all share.
        """
        tenant, limits = _tenant(revision), self._limits(revision)
        if tenant is None or limits is None or limits.max_concurrent_requests is None:
            return
        limit = limits.max_concurrent_requests
        if self.streams.num_of_tenant(tenant) + joining > limit:
            message = f"{limit} requests are in flight, which is the limit"
            raise OverloadedError(message, retry_after_seconds=1, limit=limit)

    def _limits(self, revision: str | None) -> TenantLimits | None:
        known = self._manager.get(revision) if revision is not None else None
        return known.entry.tenant if known is not None else None

    def _weight(self, revision: str | None) -> float:
        limits = self._limits(revision)
        return 1.0 if limits is None else limits.weight

    async def _hold(self, target: Target, deadline: float) -> str | None:
        """Wait until the engine and the adapter can take the request; return the revision.

        Between `resolve` and now the name may have moved to another version: then that one is used,
        since nothing has been answered yet.
        """
        patience = self._config.adapters.hold_timeout_seconds
        left = deadline - time.monotonic()
        held = await self._state.wait_for(lambda: self._can_run(target), min(patience, left))
        if self._state.draining:
            raise DrainingError("The server is shutting down", retry_after_seconds=1)
        if not held and left < patience:
            raise DeadlineError("The request took longer than allowed")
        if not held and self._state.engine is None:
            raise NotReadyError("The model is not ready yet", retry_after_seconds=1)
        if not held:
            message = f"The model `{target.served_name}` is being loaded."
            raise AdapterUnavailableError(message, param="model", retry_after_seconds=1)
        return None if target.revision is None else self._current(target)

    def _can_run(self, target: Target) -> bool:
        if self._state.draining:
            return True
        if self._state.engine is None:
            return False
        return target.revision is None or self._serving(self._current(target))

    def _current(self, target: Target) -> str:
        """Return the revision fixed by `resolve`, or its successor if it no longer serves."""
        fixed = target.revision
        if fixed is not None and (self._serving(fixed) or self._is_near(fixed)):
            return fixed
        return self._route(target.served_name, target.route_key).entry.revision

    def _serving(self, name: str) -> bool:
        revision = self._manager.get(name)
        return revision is not None and revision.serves

    def _is_near(self, name: str) -> bool:
        revision = self._manager.get(name)
        return revision is not None and revision.is_near


def _tenant(revision: str | None) -> str | None:
    """Return the namespace of a revision; None for the base model."""
    return None if revision is None else parse_revision(revision).namespace


def _submit(
    stream: Stream, token_ids: list[int], sampling: Sampling, terms: Terms, tenant_weight: float
) -> Submit:
    revision = stream.revision
    return Submit(
        stream.request_id,
        token_ids,
        sampling,
        revision,
        # Tenants are namespaces; whoever asks for the base model is one more.
        tenant=_tenant(revision) or "",
        priority=terms.priority,
        cache_salt=terms.cache_salt,
        tenant_weight=tenant_weight,
    )


async def _next_output(stream: Stream, deadline: float) -> TokenOutput:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            output = await stream.queue.get()
    except TimeoutError:
        raise DeadlineError("The request took longer than allowed") from None
    if isinstance(output, RequestError):
        raise output
    if output.is_impossible:
        raise InvalidRequestError(output.error or "The request cannot be fulfilled")
    if output.finish_reason == "error":
        raise EngineDiedError(output.error or "The engine failed on this request")
    return output


def _chunk(output: TokenOutput, queue_seconds: float | None) -> TokenChunk:
    top = output.top_logprobs
    return TokenChunk(
        token_ids=tuple(output.token_ids),
        logprobs=None if output.logprobs is None else tuple(output.logprobs),
        finish_reason=output.finish_reason,
        num_cached=output.num_cached,
        num_preemptions=output.num_preemptions,
        top_logprobs=None if top is None else tuple(map(tuple, top)),
        embedding=output.embedding,
        prompt_scores=None if output.prompt_scores is None else tuple(output.prompt_scores),
        queue_seconds=queue_seconds,
    )
