"""The loader process: brings the base model and adapters to disk, checked and ready for the engine.

A process of its own, niced, so that downloads, hashes and hostile files cost neither the server's
loop nor the engine's any time. It talks to the server alone, in `graft_runtime.ipc.messages`, and
imports no torch. The server starts it and starts it anew when it dies; all it knows is on disk.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

import msgspec
import zmq.asyncio

from graft_protocol.reasons import Reason
from graft_runtime.adapters.base_name import other_base
from graft_runtime.adapters.credential_file import read_credential
from graft_runtime.adapters.own_template import TemplateInspector, has_template
from graft_runtime.adapters.slot_store import PreparedSlot, SlotTarget, prepare_slot
from graft_runtime.errors import ReasonedError
from graft_runtime.ipc.channel import AsyncChannel
from graft_runtime.ipc.messages import (
    AdapterPrepared,
    AdapterRefused,
    FromLoader,
    GuestTemplate,
    LoaderProgress,
    LoaderReady,
    ModelPrepared,
    ModelRefused,
    PrepareAdapter,
    PrepareModel,
    ReleaseAdapter,
    Shutdown,
    ToLoader,
)
from graft_runtime.models.read import read_model_apart
from graft_runtime.models.serving_dtype import serving_dtype
from graft_runtime.settings import LoaderChildSettings
from graft_runtime.sources.ambient import read_ambient
from graft_runtime.sources.aws_profile import profile_credential
from graft_runtime.sources.cache_entry import CacheEntry, Kind
from graft_runtime.sources.disk_cache import DiskCache
from graft_runtime.sources.endpoints import SourcePolicy
from graft_runtime.sources.factory import open_source
from graft_runtime.sources.fetch import Wanted, fetch, open_cached
from graft_runtime.sources.pins import Pins
from graft_runtime.sources.selection import (
    adapter_files,
    adapter_files_with_template,
    model_files,
)
from graft_runtime.sources.uri import parse_uri

_log = logging.getLogger(__name__)

NICENESS = 10
MEMORY_BYTES = 2 * 2**30
"""Most memory the process may allocate. Files are read and converted piece by piece (61 MB seen
for an adapter of 11 MB), so this is only reached by what was made to exhaust the pod's memory."""
FETCH_TIMEOUT_SECONDS = 600.0
"""For one adapter: a source that is just quick enough to be no stall must not keep its turn."""
STREAMS_PER_SOURCE = 8
"""Files, or parts of large ones, that are read from one bucket, repository or host at a time."""
_PROGRESS_SECONDS = 0.2


def run_loader(settings: LoaderChildSettings) -> None:
    """Serve the loader's channel until told to stop."""
    os.nice(NICENESS)
    _limit_memory()
    asyncio.run(_serve(settings))


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


async def _serve(settings: LoaderChildSettings) -> None:
    context = zmq.asyncio.Context()
    channel: AsyncChannel[ToLoader, FromLoader] = AsyncChannel(
        context, settings.socket, ToLoader, connect=True
    )
    try:
        await Loader(settings, channel).run()
    finally:
        channel.close()
        context.term()


class Loader:
    """Works off the server's wishes, each in a task of its own; a failure concerns one wish."""

    def __init__(
        self, settings: LoaderChildSettings, channel: AsyncChannel[ToLoader, FromLoader]
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._cache = DiskCache(settings.cache_dir, settings.cache_max_bytes)
        self._pins = Pins(settings.cache_dir, self._cache)
        self._policy = SourcePolicy(
            allowed_endpoints=settings.allowed_endpoints,
            allowed_uris=settings.allowed_uris,
            claims_dir=settings.claims_dir,
            ambient=read_ambient(os.environ),
        )
        self._loads = asyncio.Semaphore(settings.load_concurrency)
        self._streams: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By bucket, repository or host: one busy source does not take another's turn. Kept as long
        as somebody reads from it."""
        # Apart, or the first of a thousand would be converted after the last has been fetched.
        self._conversions = asyncio.Semaphore(settings.load_concurrency)
        self._target: asyncio.Future[SlotTarget] = asyncio.get_running_loop().create_future()
        self._templates = TemplateInspector()
        self._model: CacheEntry | None = None
        self._model_uri = ""
        self._adapters: dict[str, CacheEntry] = {}
        """Pinned for as long as the server wants the revision."""
        self._wishes: dict[str | None, ToLoader] = {}
        self._tasks: dict[str | None, asyncio.Task[None]] = {}
        """By revision; None is the base model."""

    async def run(self) -> None:
        """Answer messages until `Shutdown`."""
        self._channel.post(LoaderReady())
        sweeping = asyncio.create_task(self._pins.sweep())
        try:
            while not isinstance(message := await self._channel.receive(), Shutdown):
                self._take(message)
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            await self._stop()

    def _take(self, message: PrepareModel | PrepareAdapter | ReleaseAdapter) -> None:
        if isinstance(message, PrepareModel):
            self._start(None, message, self._prepare_model(message))
        elif isinstance(message, PrepareAdapter):
            self._start(message.revision, message, self._prepare_adapter(message))
        else:
            self._cancel(message.revision)
            self._pin(message.revision, None)

    def _start(self, key: str | None, wish: ToLoader, work: Coroutine[None, None, None]) -> None:
        """Begin a wish; the same one again while under way changes nothing, another replaces it."""
        if key in self._tasks and self._wishes[key] == wish:
            work.close()
            return
        self._cancel(key)
        task = asyncio.create_task(work)
        self._tasks[key], self._wishes[key] = task, wish
        task.add_done_callback(partial(self._forget, key))

    def _forget(self, key: str | None, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key], self._wishes[key]

    def _cancel(self, key: str | None) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            del self._wishes[key]
            task.cancel()

    def _pin(self, revision: str, entry: CacheEntry | None) -> None:
        """Keep a revision's files; let go of those it had before."""
        before = self._adapters.pop(revision, None)
        if entry is not None:
            self._adapters[revision] = entry
        if before is not None:
            before.close()

    async def _stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._templates.close()
        for entry in (*self._adapters.values(), *filter(None, [self._model])):
            entry.close()

    async def _prepare_model(self, wish: PrepareModel) -> None:
        try:
            entry = await self._fetch_model(wish)
            await self._use_model(entry, wish.uri)
        except ReasonedError as error:
            self._channel.post(ModelRefused(error.reason, error.message))
        except Exception as error:  # noqa: BLE001 - answered, and logged with its trace
            _log.exception("preparing the base model failed")
            self._channel.post(
                ModelRefused(Reason.INTERNAL_ERROR, f"unexpected {type(error).__name__}")
            )
        else:
            self._channel.post(
                ModelPrepared(str(entry.files_dir), entry.digest, entry.bytes, entry.origin)
            )

    async def _fetch_model(self, wish: PrepareModel) -> CacheEntry:
        return await self._fetch(
            wish,
            Wanted(Kind.MODEL, model_files, self._settings.cache_max_bytes, wish.digest),
            _ProgressReporter(self._channel, None),
        )

    async def _use_model(self, entry: CacheEntry, uri: str) -> None:
        """Make this the model that adapters are checked against from now on."""
        try:
            arch = await asyncio.to_thread(read_model_apart, entry.files_dir)
        except BaseException:
            entry.close()
            raise
        dtype = serving_dtype(self._settings.dtype, arch)
        if self._target.done():
            self._target = asyncio.get_running_loop().create_future()
        self._model_uri = uri
        self._target.set_result(SlotTarget(arch, dtype, self._settings.max_rank))
        if self._model is not None:
            self._model.close()
        self._model = entry

    async def _prepare_adapter(self, wish: PrepareAdapter) -> None:
        digest = wish.digest
        try:
            entry = await self._fetch_adapter(wish)
            digest = entry.digest
            entry, slot = await self._convert(wish, entry)
            template = await self._template(wish, entry)
            warning = await asyncio.to_thread(other_base, entry.files_dir, self._model_uri)
        except ReasonedError as error:
            refusal = AdapterRefused(wish.revision, error.reason, error.message, digest)
            self._channel.post(refusal)
        except Exception as error:  # noqa: BLE001 - answered, and logged with its trace
            _log.exception("preparing adapter %s failed", wish.revision)
            message = f"unexpected {type(error).__name__}"
            self._channel.post(
                AdapterRefused(wish.revision, Reason.INTERNAL_ERROR, message, digest)
            )
        else:
            self._pin(wish.revision, entry)
            if warning:
                _log.warning("%s: %s", wish.revision, warning)
            prepared = _prepared(wish.revision, entry, slot, template)
            self._channel.post(msgspec.structs.replace(prepared, warning=warning))

    async def _fetch_adapter(self, wish: PrepareAdapter) -> CacheEntry:
        limit = self._settings.max_adapter_bytes
        select = adapter_files_with_template if wish.chat_template else adapter_files
        wanted = Wanted(Kind.ADAPTER, select, limit, wish.digest)
        progress = _ProgressReporter(self._channel, wish.revision)
        async with self._loads:
            try:
                async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                    entry = await self._fetch(wish, wanted, progress)
            except TimeoutError as error:
                message = f"{wish.uri} was not read within {FETCH_TIMEOUT_SECONDS:g} s"
                raise ReasonedError(Reason.LOAD_TIMEOUT, message) from error
        if has_template(entry) != wish.chat_template:
            # Found in the cache by a digest that is right for the other choice.
            entry.close()
            word = "without" if wish.chat_template else "with"
            message = f"{entry.digest} is the digest of the adapter {word} its chat template"
            raise ReasonedError(Reason.CHECKSUM_MISMATCH, message)
        return entry

    async def _convert(
        self, wish: PrepareAdapter, entry: CacheEntry
    ) -> tuple[CacheEntry, PreparedSlot]:
        """Make the slot file; a damaged copy of the adapter is fetched once more."""
        slot = await self._try_convert(entry)
        if slot is None:
            _log.warning("the cached files of %s are damaged: fetching them again", entry.digest)
            self._cache.evict(Kind.ADAPTER, entry.digest)
            entry = await self._fetch_adapter(wish)
            slot = await self._try_convert(entry)
        if slot is None:
            message = f"the disk cache does not keep what is written to it ({entry.digest})"
            raise ReasonedError(Reason.CACHE_FULL, message)
        return entry, slot

    async def _template(self, wish: PrepareAdapter, entry: CacheEntry) -> GuestTemplate | None:
        if not wish.chat_template:
            return None
        try:
            return await self._templates.inspect(entry.files_dir)
        except BaseException:
            entry.close()
            raise

    async def _try_convert(self, entry: CacheEntry) -> PreparedSlot | None:
        slot = None
        try:
            # The files may be here before the model they belong to.
            target = await asyncio.shield(self._target)
            async with self._conversions:
                slot = await asyncio.to_thread(prepare_slot, entry, target, self._cache)
        finally:
            if slot is None:
                entry.close()
        return slot

    async def _fetch(
        self, wish: PrepareModel | PrepareAdapter, wanted: Wanted, progress: _ProgressReporter
    ) -> CacheEntry:
        """Take a content from the cache, else from its source; only that needs a credential."""
        policy = self._policy
        if isinstance(wish, PrepareModel):
            # Who owns the service chose the model, and may have it from anywhere.
            policy = replace(policy, allowed_uris=())
        uri = parse_uri(wish.uri)
        policy.check_uri(str(uri))
        choice = "template" if isinstance(wish, PrepareAdapter) and wish.chat_template else ""
        digest = wanted.digest or self._pins.digest_of(wanted.kind, wish.uri, choice=choice)
        entry = open_cached(self._cache, wanted.kind, digest) if digest else None
        if entry is not None:
            return entry
        credential = read_credential(self._settings.credentials_dir, wish.credential)
        if credential is None and uri.scheme == "s3":
            credential = profile_credential(os.environ)
        async with aclosing(open_source(wish.uri, credential, policy)) as source:
            wanted = replace(wanted, streams=self._streams_of(f"{uri.scheme}://{uri.bucket}"))
            entry = await fetch(source, wanted, self._cache, progress)
            if uri.revision:
                entry.origin = source.uri
                await self._remember(wanted.kind, source.uri, entry, choice)
        return entry

    async def _remember(self, kind: Kind, uri: str, entry: CacheEntry, choice: str) -> None:
        """Note what the commit that was read holds, as long as its content is pinned."""
        try:
            await self._pins.remember(kind, uri, entry.digest, choice=choice)
        except BaseException:
            entry.close()
            raise

    def _streams_of(self, place: str) -> asyncio.Semaphore:
        return self._streams.setdefault(place, asyncio.Semaphore(STREAMS_PER_SOURCE))


def _prepared(
    revision: str, entry: CacheEntry, slot: PreparedSlot, template: GuestTemplate | None
) -> AdapterPrepared:
    return AdapterPrepared(
        revision=revision,
        digest=entry.digest,
        bytes=entry.bytes,
        rank=slot.record.rank,
        target_modules=slot.record.target_modules,
        path=str(slot.path),
        origin=entry.origin,
        template=template,
    )


class _ProgressReporter:
    """Tells the server how far a download is: at most five times a second, and at its end."""

    def __init__(self, channel: AsyncChannel[ToLoader, FromLoader], revision: str | None) -> None:
        self._channel = channel
        self._revision = revision
        self._next = 0.0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if now >= self._next or done_bytes == total_bytes:
            self._next = now + _PROGRESS_SECONDS
            self._channel.post(LoaderProgress(self._revision, done_bytes, total_bytes))
