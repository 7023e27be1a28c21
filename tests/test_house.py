"""The rules of the house, read off the source tree: import order, sizes, docstrings, C habits.

Nothing here imports shmbus; every rule names the files that break it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "shmbus" / "_native"
FOLDERS = ("shmbus", "tests", "tools", "bench", "docs", ".ci")

FLOORS = {
    "shmbus.errors": 0,
    "shmbus._log": 0,
    "shmbus._closing": 0,
    "shmbus._deaths": 0,
    "shmbus._core": 1,
    "shmbus._payload": 2,
    "shmbus._plugins": 2,
    "shmbus._schema": 2,
    "shmbus._shm": 2,
    "shmbus.topic": 3,
    "shmbus.message": 3,
    "shmbus.stats": 3,
    "shmbus.policy": 3,
    "shmbus._ledger": 4,
    "shmbus._handles": 5,
    "shmbus.publisher": 6,
    "shmbus.pooled": 6,
    "shmbus.subscriber": 6,
    "shmbus._at_exit": 6,
    "shmbus._options": 6,
    "shmbus._offers": 6,
    "shmbus.letters": 6,
    "shmbus.worker": 6,
    "shmbus.service": 6,
    "shmbus.server": 6,
    "shmbus.client": 6,
    "shmbus.supervisor": 6,
    "shmbus.bus": 7,
    "shmbus.deaths": 7,
    "shmbus.gauge": 7,
    "shmbus": 8,
    "shmbus.middleware": 8,
    "shmbus.router": 9,
    "shmbus.queues": 9,
    "shmbus.inspect": 9,
    "shmbus._leftovers": 9,
    "shmbus.diagnostics": 9,
    "shmbus._futures": 9,
    "shmbus.futures": 9,
    "shmbus.raw": 9,
    "shmbus.codecs": 10,
    "shmbus.journal": 10,
    "shmbus._conformance": 11,
    "shmbus.testing": 11,
    "shmbus.bridge": 10,
    "shmbus.observe": 10,
    "shmbus.pytest_plugin": 11,
    "shmbus.cli": 11,
    "shmbus.__main__": 12,
}
"""One floor a folder, lowest first: a module imports its own floor and those below. A package takes one line here."""

FORBIDDEN = {
    "shmbus.supervisor": {"shmbus.publisher", "shmbus.subscriber"},
}
"""Imports that the floors alone would admit."""

MAX_MODULE = 400
MAX_C_FILE = 520
MAX_C_FUNCTION = 80


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "shmbus").rglob("*.py"))}
KNOWN = {*MODULES, "shmbus._core"}
PYTHON = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TESTS = [path for path in PYTHON if path.is_relative_to(ROOT / "tests")]
C_FILES = sorted([*NATIVE.glob("*.[ch]"), *(ROOT / "tests" / "native").rglob("*.[ch]")])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=relative(path))


def rank(module: str) -> int | None:
    """The floor of a module: its own line of the table, or that of the folder that it is in."""
    if module in FLOORS:
        return FLOORS[module]
    folder = module.rpartition(".")[0]
    return FLOORS.get(folder) if folder != "shmbus" else None


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: all but the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for branch in child.orelse:
                yield branch
                yield from runtime_nodes(branch)
            continue
        yield child
        yield from runtime_nodes(child)


def imported(module: str, tree: ast.Module, *, is_package: bool) -> set[str]:
    """The modules of the project that `module` imports when it runs, at its top or inside a function."""
    names: set[str] = set()
    package = module if is_package else module.rpartition(".")[0]
    for node in runtime_nodes(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                names.add(inner if inner in KNOWN else source)
    return {name for name in names if name.split(".")[0] == "shmbus"} - {module}


def graph() -> dict[str, set[str]]:
    return {
        module: imported(module, parse(path), is_package=path.name == "__init__.py") for module, path in MODULES.items()
    }


def c_functions(text: str) -> Iterator[tuple[str, int]]:
    """Each function of a C file with the number of lines from its opening to its closing brace."""
    blank = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
    text = blank.sub(lambda found: "\n" * found.group().count("\n") or " ", text)
    text = re.sub(r"^[ \t]*#(?:.*\\\n)*.*", lambda found: "\n" * found.group().count("\n"), text, flags=re.M)
    depth = start = since = 0
    name = ""
    for position, character in enumerate(text):
        if character == "{":
            if depth == 0:
                head = text[since:position].strip()
                called = re.search(r"(\w+)\s*\([^;]*\)$", head)
                name, start = (called.group(1), position) if called else ("", position)
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0 and name:
                yield name, text.count("\n", start, position) + 1
        if depth == 0 and character in ";}":
            since = position + 1


def text_files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob("*")
    yield from ROOT.glob("*")


def test_every_module_has_a_floor() -> None:
    """Every module of the package stands on a floor."""
    homeless = [module for module in MODULES if rank(module) is None]
    assert not homeless, f"place it in the table FLOORS: {homeless}"


def test_imports_point_down() -> None:
    """No module imports one of a higher floor when it runs."""
    wrong = [
        f"{module} ({rank(module)}) imports {target} ({rank(target)})"
        for module, targets in graph().items()
        for target in sorted(targets)
        if rank(module) is not None and (rank(module) or 0) < (rank(target) or 0)
    ]
    assert not wrong, wrong


def test_forbidden_imports_are_absent() -> None:
    """The supervisor imports no publisher or subscriber, and errors imports nothing of the project."""
    imports = graph()
    wrong = {module: imports.get(module, set()) & targets for module, targets in FORBIDDEN.items()}
    assert not any(wrong.values()), wrong
    assert not imports["shmbus.errors"]


def test_imports_have_no_cycle() -> None:
    """The imports that run form no cycle."""
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_modules_fit() -> None:
    """No Python file is longer than 400 lines, no C file longer than 520."""
    sizes = [(path, MAX_MODULE) for path in PYTHON] + [(path, MAX_C_FILE) for path in C_FILES]
    counted = [(relative(path), len(path.read_bytes().splitlines()), limit) for path, limit in sizes]
    long = [f"{name}: {lines} lines, at most {limit}" for name, lines, limit in counted if lines > limit]
    assert not long, long


def test_modules_have_docstrings() -> None:
    """Every Python file says in its docstring what it is for."""
    silent = [relative(path) for path in PYTHON if not ast.get_docstring(parse(path))]
    assert not silent, silent


def test_tests_have_one_sentence() -> None:
    """The docstring of every test is one sentence that says what must hold."""
    wrong: list[str] = []
    for path in TESTS:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                sentence = " ".join((ast.get_docstring(node) or "").split())
                if not re.fullmatch(r"(?:(?![.!?] [A-Z]).)+\.", sentence):
                    wrong.append(f"{relative(path)}:{node.lineno} {node.name}: {sentence!r}")
    assert not wrong, wrong


def test_tests_wait_for_conditions() -> None:
    """No test sleeps to wait for something, unless the line or the one above says `# not a wait:` and why."""
    sleeps = re.compile(r"\bsleep\((?!0\))")
    wrong: list[str] = []
    for path in TESTS:
        above = ""
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if sleeps.search(text) and "# not a wait:" not in text + above:
                wrong.append(f"{relative(path)}:{number}: {text.strip()}")
            above = text
    assert not wrong, wrong


def test_c_functions_fit() -> None:
    """No C function is longer than 80 lines."""
    long = [
        f"{relative(path)}: {name}: {lines} lines"
        for path in C_FILES
        for name, lines in c_functions(path.read_text(encoding="utf-8"))
        if lines > MAX_C_FUNCTION
    ]
    assert not long, long


def test_sync_labels_have_two_ends() -> None:
    """Every `SYNC name` comment occurs at both ends of its release/acquire pair."""
    sources = [*sorted(NATIVE.glob("*.[ch]")), *sorted((ROOT / "shmbus").rglob("*.py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    labels = Counter(re.findall(r"\bSYNC (?!name\b)([A-Za-z][\w-]*)", text))
    single = [label for label, count in labels.items() if count < 2]
    assert not single, f"the other end carries no such label: {single}"


def test_shared_memory_headers_are_headed() -> None:
    """Every header that lays out shared memory says Layout, Writers, Invariants and Crash order."""
    wrong: list[str] = []
    for path in sorted(NATIVE.glob("*.h")):
        text = path.read_text(encoding="utf-8")
        missing = [word for word in ("Layout", "Writers", "Invariants", "Crash order") if not has_word(text, word)]
        if re.search(r"_Static_assert\s*\(\s*offsetof", text) and missing:
            wrong.append(f"{relative(path)}: {missing}")
    assert not wrong, wrong


def has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def test_no_path_of_a_machine() -> None:
    """No text file names an absolute path below somebody's home or work folder."""
    private = re.compile(r"(?<![\w.~$}])/(?:home|root|work|Users)/\w")
    wrong: list[str] = []
    for path in text_files():
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" in content:  # compiled, or a picture
            continue
        for number, text in enumerate(content.decode(errors="replace").splitlines(), 1):
            if private.search(text):
                wrong.append(f"{relative(path)}:{number}: {text.strip()}")
    assert not wrong, wrong


def test_files_that_the_docs_name() -> None:
    """Every file of ours that a page names is there."""
    named = re.compile(r"\b(?:tests|tools|bench|shmbus)/[\w/]*\.(?:py|c|h|toml)\b")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    lost = [
        f"{relative(page)}: {path}"
        for page in pages
        for path in sorted(set(named.findall(page.read_text(encoding="utf-8"))))
        if not (ROOT / path).exists()
    ]
    assert not lost, lost


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import shmbus.bus", {"shmbus.bus"}),
        ("from shmbus import errors", {"shmbus.errors"}),
        ("from .errors import Full", {"shmbus.errors"}),
        ("def f():\n    from . import _core", {"shmbus._core"}),
        ("if TYPE_CHECKING:\n    import shmbus.bus\nelse:\n    import shmbus.errors", {"shmbus.errors"}),
        ("import msgspec", set()),
    ],
)
def test_import_reader(source: str, expected: set[str]) -> None:
    """The reader of imports sees every form that runs and no other."""
    assert imported("shmbus.stats", ast.parse(source), is_package=False) == expected


def test_c_reader() -> None:
    """The reader of C functions counts functions, and neither tables, types, comments nor macros."""
    text = (
        "/* f() { */\n#define M(x) \\\n    do { x; } while (0)\n"
        "struct s {\n  int a;\n};\nstatic int t[] = {1};\n"
        "int\nf(int a)\n{\n    if (a) {\n        g('{');\n    }\n    return 0;\n}\n"
        'void g(char c) { h("}"); }\n'
    )
    assert list(c_functions(text)) == [("f", 6), ("g", 1)]
