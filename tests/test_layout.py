"""The habits of the source tree that a linter does not see."""

import re
import subprocess
import sys
import tomllib

import pytest

from tests.support.source_tree import (
    PACKAGES,
    ROOT,
    explained_dimensions,
    function_lengths,
    named_dimensions,
    python_files,
    working_asserts,
)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
LOCKS = ("dev", "operator", "runtime", "uv")
# Each lets bytes become code or was never fixed; design decisions keep them out of a pod.
REFUSED_IN_PRODUCT = {"boto3", "cloudpickle", "dill", "diskcache", "python-multipart"}

# Rooms that must start fast and can never be held up by a tensor. transformers loads torch when a
# model class is touched, so the linter's contracts alone would not see it.
ROOMS_WITHOUT_TENSORS = (
    "graft_operator",
    "graft_protocol",
    "graft_runtime.ipc",
    "graft_runtime.pod",
    "graft_runtime.server",
    "graft_runtime.sources",
    "graft_runtime.text",
)
IMPORT_ALL = """
import importlib, pkgutil, sys
room = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print([name for name in ("torch", "peft", "triton") if name in sys.modules])
"""

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md")
SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in python_files()}
PIN = re.compile(r"^(?P<name>[a-z0-9._-]+)==(?P<version>[^ ;]+)", re.MULTILINE)


def lock(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def pins(name: str) -> set[tuple[str, str]]:
    return {(match["name"], match["version"]) for match in PIN.finditer(lock(name))}


def project_version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


@pytest.mark.parametrize("folder", ["operator", "runtime", "tests"])
def test_folders_on_the_import_path_are_no_packages(folder: str) -> None:
    # operator/__init__.py would shadow the standard library's `operator` and break every start.
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("__init__.py")}
    assert {path for path in found if not path.startswith(PACKAGES)} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_a_file_is_about_one_noun() -> None:
    lengths = {path: source.count("\n") for path, source in SOURCES.items()}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_a_function_fits_a_screen() -> None:
    lengths = [
        (path, name, lines)
        for path, source in SOURCES.items()
        for name, lines in function_lengths(source)
    ]
    assert lengths
    assert [row for row in lengths if row[2] > MAX_FUNCTION_LINES] == []


def test_every_shape_suffix_has_a_legend() -> None:
    unexplained = {
        path: named_dimensions(source) - explained_dimensions(source)
        for path, source in SOURCES.items()
    }
    assert {path: letters for path, letters in unexplained.items() if letters} == {}


def test_function_lengths_leave_the_docstring_out() -> None:
    source = 'def f() -> None:\n    """One.\n\n    Two.\n    """\n    a = 1\n    return a\n'
    assert list(function_lengths(source)) == [("f", 3)]


def test_an_unexplained_dimension_is_found() -> None:
    source = "# Shape legend: T tokens,\n# D/O features.\ndef f(x_TnD, w_DO, y_T1H): ...\n"
    assert named_dimensions(source) - explained_dimensions(source) == {"n", "H"}


def test_nothing_in_the_product_hangs_on_an_assert() -> None:
    """What a user, a file or a peer can cause is refused under `python -O`, too."""
    found = {
        path: lines
        for path, source in SOURCES.items()
        if path.startswith(PACKAGES) and (lines := list(working_asserts(source)))
    }
    assert found == {}


def test_an_assert_that_does_more_than_narrow_a_type_is_found() -> None:
    narrowing = "assert a is not None\nassert a.b is not None, 'so'\nassert isinstance(a, int)\n"
    assert list(working_asserts(narrowing)) == []
    working = "assert a\nassert a > 1\nassert f() is not None\nassert a is not None and b\n"
    assert list(working_asserts(working)) == [1, 2, 3, 4]


def test_a_legend_in_a_docstring_ends_with_its_paragraph() -> None:
    source = '"""A plan.\n\nShape legend: T tokens,\nS rows.\n\nR is not explained.\n"""\n'
    assert explained_dimensions(source) == {"T", "S"}


def test_constants_are_not_taken_for_shapes() -> None:
    assert named_dimensions("MAX_TOKENS = 1\nhttp_server = 2\n") == set()


@pytest.mark.parametrize("room", ROOMS_WITHOUT_TENSORS)
def test_a_room_without_tensors_starts_without_torch(room: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, room], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_carries_the_distributions_version(package: str) -> None:
    source = (ROOT / package / "__init__.py").read_text()
    assert f'__version__ = "{project_version()}"' in source


def test_the_changelog_starts_with_the_distributions_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(name for name in versions if name != "Unreleased") == project_version()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_hashes_and_no_addresses(name: str) -> None:
    text = lock(name)
    assert "://" not in text
    assert "index-url" not in text
    entries = [entry for entry in re.split(r"\n(?=[a-z0-9])", text) if "==" in entry]
    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("name", ["operator", "runtime", "uv"])
def test_a_lock_pins_what_is_tested(name: str) -> None:
    assert pins(name)
    assert pins(name) - pins("dev") == set()


@pytest.mark.parametrize("name", ["operator", "runtime"])
def test_refused_packages_stay_out_of_the_product(name: str) -> None:
    assert {package for package, _ in pins(name)} & REFUSED_IN_PRODUCT == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_commands_in_the_pages_exist(page: str) -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", (ROOT / page).read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_pages_exist(page: str) -> None:
    roots = [ROOT, ROOT / "operator", ROOT / "runtime", *(ROOT / package for package in PACKAGES)]
    named = set(re.findall(r"[`(]([\w./-]+(?:\.py|\.md|\.toml|/))[`)]", (ROOT / page).read_text()))
    here = [*roots, (ROOT / page).parent]
    assert {path for path in named if not any((root / path).exists() for root in here)} == set()
