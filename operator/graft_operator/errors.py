"""Every error of the control plane, as one tree.

GraftError
|-- InvalidManifestError     a manifest cannot work as written; never retried until it changes
|-- ClusterError             the cluster refused or failed; retried with backoff
|   |-- NotFoundError            no such object
|   |-- RefusedError             it will not have this, until something changes
|   |   |-- ForbiddenError           this identity may not do that, or not now
|   |   |-- InvalidObjectError       the object would not be valid
|   |   `-- NameTakenError           somebody else's object has the name
|   |-- ConflictError            the object is not the one that was read
|   |-- ExpiredError             the version a read began at is gone; read anew
|   |-- AccessError              no credentials for a cluster can be found or used
|   `-- ClusterUnreachableError  no answer
|-- OperatorError            the operator cannot go on; only a new process helps
|   `-- DeadWatchError           a watch is silent while objects change
|-- RuntimeUnreachableError  a runtime pod gave no usable report; polled again
|-- LocalModeError           `graft up` cannot run as asked
|-- MergeError               adapters cannot be merged here
`-- PublishError             an adapter folder cannot be published
"""

from __future__ import annotations


class GraftError(Exception):
    """Base of all errors the control plane raises on purpose; its text is for people."""


class InvalidManifestError(GraftError):
    """A manifest cannot work as written.

    Args:
        path: The field at fault, such as ``spec.model.uri``; empty for the document as a whole.
        problem: What is wrong with it.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem


class ClusterError(GraftError):
    """The cluster refused or failed; the object's reconcile is tried again with backoff."""


class NotFoundError(ClusterError):
    """The object does not exist."""


class RefusedError(ClusterError):
    """The cluster will not have this: a rule, a right, a quota, or somebody's policy is against it.

    Tried again all the same, since whoever mends it need not touch the object.
    """


class ForbiddenError(RefusedError):
    """The operator's identity may not do this, or a quota is used up."""


class InvalidObjectError(RefusedError):
    """The object would not be valid as it was to be written."""


class NameTakenError(RefusedError):
    """An object that is not ours has the name."""


class ConflictError(ClusterError):
    """The object is not, or no longer, the one that was read."""


class ExpiredError(ClusterError):
    """The version at which a read began is no longer kept; the read has to begin anew."""


class ClusterUnreachableError(ClusterError):
    """The cluster's API does not answer, or not now."""


class AccessError(ClusterError):
    """No credentials for a cluster can be found or used."""


class OperatorError(GraftError):
    """The operator cannot go on; the process has to be replaced."""


class DeadWatchError(OperatorError):
    """A watch delivers nothing while objects change."""


class RuntimeUnreachableError(GraftError):
    """A runtime pod gave no usable report."""


class LocalModeError(GraftError):
    """Local mode cannot do what was asked."""


class MergeError(GraftError):
    """Adapters cannot be merged here."""


class PublishError(GraftError):
    """An adapter folder cannot be published."""
