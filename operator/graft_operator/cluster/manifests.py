"""A folder of YAML manifests, read again whenever a file changes.

A file that cannot be read or parsed keeps its last good content, and says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The same rules in C where PyYAML was built with it: ten times as fast."""
SUFFIXES = frozenset({".yaml", ".yml"})
FILE_MAX = 8 * 2**20
"""Largest manifest file that is read, bytes."""


class Document(NamedTuple):
    """One document of a file, parsed but not checked."""

    file: str
    number: int
    """Place in its file, from 1."""
    content: Any


class Problem(NamedTuple):
    """Something a user has to mend; `where` names file and document."""

    where: str
    message: str


class Signature(NamedTuple):
    """What changes when a file does."""

    mtime_ns: int
    size: int
    inode: int


@dataclass
class _File:
    seen: Signature | None = None
    read: Signature | None = None
    documents: tuple[Document, ...] = ()
    problem: Problem | None = None


@dataclass(frozen=True)
class Scan:
    """All documents in order of file and place, and what was wrong with files as a whole."""

    documents: tuple[Document, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class ManifestFolder:
    """Remembers what it read; `scan` is cheap when nothing changed."""

    folder: Path
    _files: dict[str, _File] = field(default_factory=dict)
    _missing: set[str] = field(default_factory=set)
    _is_first: bool = True
    _folder_problem: Problem | None = None

    def scan(self) -> Scan | None:
        """Return the content if it changed since the last scan, else None.

        A changed file is read only when two scans in a row find it the same, so that a file being
        written is not taken for one with half its objects removed.
        """
        before = self._folder_problem
        signatures = self._signatures()
        changed = self._is_first or before != self._folder_problem
        if signatures is not None:
            changed |= self._forget_missing(signatures)
            for name, signature in signatures.items():
                changed |= self._look_at(name, signature)
            self._is_first = False
        return self._result() if changed else None

    def _signatures(self) -> dict[str, Signature] | None:
        try:
            found = dict(self._each())
        except OSError as error:
            self._folder_problem = Problem(str(self.folder), error.strerror or str(error))
            return None
        self._folder_problem = None
        return found

    def _each(self) -> Iterator[tuple[str, Signature]]:
        for path in sorted(self.folder.iterdir()):
            if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file():
                stat = path.stat()
                yield path.name, Signature(stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _forget_missing(self, signatures: dict[str, Signature]) -> bool:
        missing = self._files.keys() - signatures.keys()
        gone = missing & self._missing
        for name in gone:
            del self._files[name]
        self._missing = set(missing) - gone
        return bool(gone)

    def _look_at(self, name: str, signature: Signature) -> bool:
        file = self._files.setdefault(name, _File())
        if signature == file.read:
            return False
        rests = self._is_first or signature == file.seen
        file.seen = signature
        if not rests:
            return False
        file.read = signature
        self._read(name, file)
        return True

    def _read(self, name: str, file: _File) -> None:
        try:
            if file.read is not None and file.read.size > FILE_MAX:
                file.problem = Problem(name, f"larger than {FILE_MAX} bytes")
                return
            text = (self.folder / name).read_text()
            contents = [content for content in yaml.load_all(text, LOADER) if content is not None]
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
            file.problem = Problem(place, f"not YAML: {error.problem or error}")
            return
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            file.problem = Problem(name, f"cannot be read: {error}")
            return
        file.problem = None
        file.documents = tuple(
            Document(name, index, content) for index, content in enumerate(contents, start=1)
        )

    def _result(self) -> Scan:
        files = [self._files[name] for name in sorted(self._files)]
        problems = [file.problem for file in files if file.problem is not None]
        if self._folder_problem is not None:
            problems.append(self._folder_problem)
        documents = tuple(document for file in files for document in file.documents)
        return Scan(documents, tuple(problems))
