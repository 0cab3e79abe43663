"""Who may import whom, and how long a function or a file may be.

core <- ports <- {API, engines} <- runtime <- edges. The runtime never imports an engine, an engine never imports the
runtime, and nobody imports an edge.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workers"
MAX_FUNCTION, MAX_FILE = 60, 300

CORE, PORTS, API, ENGINES, RUNTIME, FACE, EDGES = range(7)
NAMES = ("core", "ports", "API", "engines", "runtime", "the public face", "edges")

#: The layer of each module, by the longest prefix that fits.
LAYERS = {
    "errors": CORE,
    "job": CORE,
    "lifecycle": CORE,
    "backoff": CORE,
    "config": CORE,
    "codec": CORE,
    "_payload": CORE,
    "_comparison": CORE,
    "_annotations": CORE,
    "current": CORE,
    "failpoints": CORE,
    "hiding": CORE,
    "marks": CORE,
    "dsn": PORTS,
    "storage": PORTS,
    "telemetry": PORTS,
    "log_aside": PORTS,
    "loggers": PORTS,
    "background_job": API,
    "declaration": API,
    "job_type": API,
    "registry": API,
    "connections": API,
    "copying": API,
    "_connection_types": API,
    "_enqueueing": API,
    "_enqueue_errors": API,
    "_enqueue_statements": API,
    "_connection_advice": API,
    "storage.postgres": ENGINES,
    "storage.memory": ENGINES,
    "migrations": ENGINES,
    "roles": ENGINES,
    "runtime": RUNTIME,
    "handle": RUNTIME,
    "runner": RUNTIME,
    "": FACE,
    "__main__": EDGES,
    "cli": EDGES,
    "sentry": EDGES,
    "metrics": EDGES,
    "testing": EDGES,
    "embedded": EDGES,
    "_pgserver": EDGES,
    "dashboard": EDGES,
}

#: What each layer may import besides itself, while the program runs.
MAY_IMPORT = {
    CORE: set(),
    PORTS: {CORE},
    API: {CORE, PORTS},
    ENGINES: {CORE, PORTS},
    RUNTIME: {CORE, PORTS, API},
    FACE: {CORE, PORTS, API, ENGINES, RUNTIME},
    EDGES: {CORE, PORTS, API, ENGINES, RUNTIME, FACE},
}

#: Where the layers are joined: the one place that knows an engine by name, what `import workers` switches on, and
#: `enqueue`, which on a connection of the user's own is SQL: the engine's statements, not its machinery.
EXCEPTIONS = {
    ("storage", "storage.postgres.storage"),
    ("", "sentry"),
    ("_enqueue_statements", "storage.postgres.statements"),
    ("connections", "storage.postgres.literals"),
}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The name below `workers`: "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def layer_of(module: str) -> int:
    """By the longest prefix that has a layer."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in LAYERS:
            return LAYERS[prefix]
    raise AssertionError(f"workers.{module} has no layer: give it one in LAYERS")


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """The modules of this package that `module` imports while it runs, with the line."""
    path = MODULES[module]
    tree = ast.parse(path.read_text("utf-8"))
    parts = ["workers", *filter(None, module.split("."))]
    package = parts if path.name == "__init__.py" else parts[:-1]
    for node in _at_run_time(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            targets = [_target(source, alias.name) for alias in node.names]
        else:
            continue
        for target in targets:
            if target == "workers" or target.startswith("workers."):
                yield target.removeprefix("workers").removeprefix("."), node.lineno


def _target(source: str, name: str) -> str:
    """`from source import name`: a module of that name, or something inside of `source`."""
    inner = f"{source}.{name}"
    return inner if inner.removeprefix("workers.") in MODULES else source


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _at_run_time(other)
            continue
        yield child
        yield from _at_run_time(child)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "workers")
def test_imports_point_inwards(module: str) -> None:
    """The direction of every import."""
    own = layer_of(module)
    for target, line in imports_of(module):
        other = layer_of(target)
        if other == own or other in MAY_IMPORT[own] or (module, target) in EXCEPTIONS:
            continue
        pytest.fail(
            f"{MODULES[module]}:{line}: {NAMES[own]} must not import {NAMES[other]} (workers.{target})"
        )


def test_the_engines_do_not_know_each_other() -> None:
    """Each stands alone behind the port."""
    for module in MODULES:
        for engine, other in (("postgres", "memory"), ("memory", "postgres")):
            if module.startswith(f"storage.{engine}"):
                targets = [target for target, _ in imports_of(module)]
                assert not any(target.startswith(f"storage.{other}") for target in targets), module


def test_the_core_does_no_io() -> None:
    """Pure: no sockets, threads, drivers, event loops or files."""
    banned = {"asyncio", "anyio", "psycopg", "psycopg_pool", "threading", "subprocess", "logging"}
    for module, path in MODULES.items():
        if layer_of(module) != CORE:
            continue
        for node in _at_run_time(ast.parse(path.read_text("utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            found = banned & {name.partition(".")[0] for name in names}
            assert not found, f"{path}: the core must not import {found}"


def test_the_imports_are_really_read() -> None:
    """A check that finds nothing would pass for ever."""
    assert "runtime.worker" in {target for target, _ in imports_of("runtime.crew")}
    assert "storage.base" in {target for target, _ in imports_of("storage.postgres.storage")}
    assert "background_job" not in {target for target, _ in imports_of("job_type")}
    assert sum(len(list(imports_of(module))) for module in MODULES) > 100


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_too_long(path: Path) -> None:
    """No function over 60 lines, no file over 300."""
    source = path.read_text("utf-8")
    lines = source.count("\n")
    assert lines <= MAX_FILE, f"{path} has {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{path}:{node.lineno}: {node.name} has {length} lines"
