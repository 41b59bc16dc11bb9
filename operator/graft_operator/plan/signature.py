"""Which versions of its adapters a service takes for the keys it trusts.

Decided here alone: pods load by digest and check the bytes, so that the chain goes from key to
digest to bytes, and a key that comes or goes counts at once, in the pods that run.
"""

from __future__ import annotations

from graft_operator.plan.public_key import has_any_signed, read_public_key
from graft_operator.plan.rollout import is_rejected, wanted_revision
from graft_operator.resources.status import RevisionStatus
from graft_operator.resources.v1alpha1 import InferenceService, LoraAdapter

FIELD = "spec.adapters.trustedKeys"


def unsigned(service: InferenceService, adapter: LoraAdapter) -> str:
    """Return why a service that asks for signatures does not take what an adapter's spec asks for.

    Empty if it does. The version that serves may go on all the same (`serves_on`).
    """
    keys, source = service.spec.adapters.trusted_keys, adapter.spec.source
    if not keys:
        return ""
    missing = [name for name in ("digest", "signature") if getattr(source, name) is None]
    if missing:
        named = " and ".join(f"spec.source.{name}" for name in missing)
        return (
            f"the InferenceService asks for signatures ({FIELD}), and there is no {named}: "
            "`graft adapter publish --sign-key` prints both"
        )
    wanted = wanted_revision(adapter)
    if not _is_signed(keys, wanted):
        unusable = unusable_keys(service)
        return (
            f"spec.source.signature: none of the keys in {FIELD} of the InferenceService signed "
            f"{wanted.digest}: sign it with one of them, or have the service's owner add the key"
            + (f"; of these, {unusable}" if unusable else "")
        )
    untrusted = untrusted_revision(service, adapter)
    if untrusted is not None and is_rejected(adapter, wanted):
        return (
            f"{wanted.id} was rolled back, and none of the keys in {FIELD} of the InferenceService "
            f"signed {untrusted}, which served instead: name another version in spec.source"
        )
    return ""


def serves_on(service: InferenceService, adapter: LoraAdapter) -> bool:
    """Whether the version that serves goes on where the one that the spec asks for is not taken.

    That it was taken once counts for nothing: its recorded signature is verified each time. So
    neither a key that is gone nor an edited status keeps what no trusted key signed.
    """
    current = adapter.status.current_revision
    return current is not None and _is_signed(service.spec.adapters.trusted_keys, current)


def untrusted_revision(service: InferenceService, adapter: LoraAdapter) -> str | None:
    """Return the version that served before the wanted one, if it may not serve any longer.

    Its own signature was recorded with it: the one in the spec is that of the wanted version.
    """
    keys, current = service.spec.adapters.trusted_keys, adapter.status.current_revision
    if not keys or current is None or current.id == wanted_revision(adapter).id:
        return None
    return None if _is_signed(keys, current) else current.id


def without_revision(adapter: LoraAdapter, revision: str | None) -> LoraAdapter:
    """Return an adapter as if a version had never served, so that nothing goes back to it."""
    current = adapter.status.current_revision
    if revision is None or current is None or current.id != revision:
        return adapter
    status = adapter.status.model_copy(update={"current_revision": None})
    return adapter.model_copy(update={"status": status})


def unusable_keys(service: InferenceService) -> str:
    """Return what is wrong with keys that a service trusts; empty if nothing is."""
    read = [read_public_key(pem).problem for pem in service.spec.adapters.trusted_keys]
    return "; ".join(f"{FIELD}[{index}] {problem}" for index, problem in enumerate(read) if problem)


def _is_signed(keys: tuple[str, ...], revision: RevisionStatus) -> bool:
    digest, signature = revision.digest, revision.signature
    if digest is None or signature is None:
        return False
    return has_any_signed(keys, digest, signature)
