"""Arrows run one way: a module imports only what stands before it, and nothing in a circle, in functions neither."""

import ast
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lerobot_policy_pi05_rl

ROOT = Path(lerobot_policy_pi05_rl.__file__).parent
# From the ground up; the longest name that fits a module is its place.
ORDER = [
    "errors",
    "options",
    "returns",
    "thresholds",
    "advantage",
    "extraction_checks",
    "data.batch",
    "runtime",
    "cards",
    "stored",
    "configuration_pi05_rl",
    "config",
    "command",
    "processor_pi05_rl",
    "model",
    "modeling_pi05_rl",
    "distributed.processes",
    "data",
    "noise",
    "losses",
    "distributed",
    "training.metrics",
    "training.critic_metrics",
    "training.early_stopping",
    "training.schedule",
    "recap",
    "checkpoint",
    "training",
    "labels",
    "report",
    "plan",
    "init",
    "offline_learner",
    "online",
    "demo",
    "plugin",
    "api",
    "cli",
]


@cache
def modules() -> dict[str, Path]:
    """Dotted name below the package → file; the package itself is ``""``."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The package's modules that ``module`` imports, wherever in the file."""
    path, found = modules()[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.partition(".")[2] for name in names if name.partition(".")[0] == ROOT.name}
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if package else []
            base = ".".join([*above, *([node.module] if node.module else [])])
        elif node.module.partition(".")[0] == ROOT.name:
            base = node.module.partition(".")[2]
        else:
            continue
        full = [f"{base}.{alias.name}".strip(".") for alias in node.names]
        found |= {name if name in modules() else base for name in full}
    return frozenset(found - {module, ""})


def place(module: str) -> int:
    fits = [name for name in ORDER if f"{module}.".startswith(f"{name}.")]
    assert fits, f"{module} has no place in the order"
    return ORDER.index(max(fits, key=len))


@pytest.mark.parametrize("module", sorted(modules().keys() - {""}))  # the package registers what LeRobot looks for
def test_a_module_imports_what_stands_before_it(module):
    above = {other for other in imports(module) if place(other) > place(module)}
    assert not above


def test_nothing_is_imported_in_a_circle():
    try:
        tuple(TopologicalSorter({module: imports(module) for module in modules()}).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_nobody_imports_the_command_line():
    assert [module for module in modules() if "cli" in imports(module)] == []


@pytest.mark.parametrize("name", ORDER)
def test_every_place_in_the_order_is_a_modules(name):
    assert any(f"{module}.".startswith(f"{name}.") for module in modules())


def test_the_tests_mirror_the_folders():
    tests = Path(__file__).parent
    folders = {path.relative_to(tests) for path in tests.rglob("*") if any(path.glob("test_*.py"))}
    assert Path("online/replay") in folders and [path for path in folders if not (ROOT / path).is_dir()] == []


def test_every_test_file_has_a_name_of_its_own():
    """Folders of tests are no packages: of two files of one name pytest can import the first alone."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
