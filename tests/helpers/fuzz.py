"""What the fuzzers share: how many cases, the property, and damage to JSON, Parquet and safetensors files.

Property: whatever the input, a call works, or it ends in one UserError (exit code 2, one line that names something),
and the input is as it was.
"""

import contextlib
import copy
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from lerobot_policy_pi05_rl import cli

FEW = 50  # cases of each of the four fuzzers in `make test`
MANY = int(os.environ.get("PI05_RL_FUZZ_CASES", 250))  # in `make test-slow`


def cases(count: int) -> settings:
    """The same cases in every run, however slow the machine."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # shrinking to a smaller case takes minutes, and says no more
        suppress_health_check=list(HealthCheck),
    )


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 7, 100, -0.5, 0.5, 1.5, 1e-9, 1e30, float("nan"), float("inf")])
TEXTS = st.sampled_from(["", " ", "x", "0", "1.5", "nan", "null", "true", "../x", "ünï", "action", "cpu", "a\nb"])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JUNK = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.dictionaries(TEXTS, SCALARS, max_size=2),
    st.just([[]]),
    st.just({"type": "x"}),
)
PLACES = st.integers(0, 9999)  # the n-th of however many there are


# ── The property ─────────────────────────────────────────────────────────────────────────────────────────────────


def outcome(call: Callable[[], Any], *names: str) -> Any | None:
    """What ``call`` returns; None where it ended as a command does for bad input, in words that name one of ``names``.

    Anything but a UserError comes through, and fails the test."""
    results: list[Any] = []

    def verb(_: list[str]) -> int:
        results.append(call())
        return 0

    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
        code = cli.run_verb(verb, [], debug=False)
    if code == 0:
        assert results[0] is not None
        return results[0]
    lines = [line for line in stderr.getvalue().splitlines() if line.startswith("pi05-rl: error: ")]
    assert code == 2 and len(lines) == 1, stderr.getvalue()
    message = lines[0].removeprefix("pi05-rl: error: ")
    assert any(name in message for name in names), f"{message!r} names none of {names}"
    return None


def contents(root: Path) -> dict[str, bytes]:
    """Every file below ``root``."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def unchanged(root: Path):
    """Nothing below ``root`` is changed, added or removed."""
    before = contents(root)
    yield
    after = contents(root)
    assert before.keys() == after.keys(), f"{sorted(before.keys() ^ after.keys())} came or went"
    assert before == after, f"{[name for name in before if before[name] != after[name]]} changed"


def copied(source: Path, target: Path) -> Path:
    """A tree of its own in place of ``target``; files are hard links, which :func:`rewrite` replaces."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=os.link, symlinks=True)
    return target


def rewrite(file: Path, data: bytes) -> None:
    """Give ``file`` other contents; what it is linked to keeps its own."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


# ── Damage to any file ───────────────────────────────────────────────────────────────────────────────────────────

BYTES = st.tuples(st.sampled_from(["cut", "empty", "remove", "flip", "garbage"]), PLACES)


def damage_bytes(file: Path, how: tuple[str, int]) -> None:
    """Truncate, empty, remove, flip a byte of, or replace ``file``."""
    kind, place = how
    data = bytearray(file.read_bytes())
    if kind == "remove":
        file.unlink()
        return
    if kind == "cut":
        data = data[: len(data) * (place % 100) // 100]
    elif kind == "empty":
        data = bytearray()
    elif kind == "flip" and data:
        data[place * 7919 % len(data)] ^= 1 + place % 255
    elif kind == "garbage":
        data = bytearray(np.random.default_rng(place).bytes(place % 500))
    rewrite(file, bytes(data))


# ── Damage to a tree of keys ─────────────────────────────────────────────────────────────────────────────────────

TREE = st.tuples(st.sampled_from(["set", "set", "drop", "insert", "rename", "wrap", "text"]), PLACES, JUNK)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in nested mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in [(*path, key), *places(value, (*path, key))]]


def damage_tree(tree: Any, how: tuple[str, int, Any]) -> tuple:
    """Change one value of nested mappings and lists in place; returns its path."""
    kind, place, value = how
    found = places(tree)
    if not found:
        return ()
    path = found[place % len(found)]
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    last = path[-1]
    if kind == "set":
        parent[last] = value
    elif kind == "drop":
        del parent[last]
    elif kind == "wrap":
        parent[last] = [parent[last]]
    elif kind == "text":
        parent[last] = str(parent[last])
    elif kind == "insert":
        parent.insert(last, value) if isinstance(parent, list) else parent.update({f"{last}_x": value})
    elif kind == "rename" and isinstance(parent, dict):
        parent[f"{last}x"] = parent.pop(last)
    return path


def damage_json(file: Path, how: tuple[str, int, Any]) -> None:
    """:func:`damage_tree` of a JSON file."""
    tree = json.loads(file.read_text())
    damage_tree(tree, copy.deepcopy(how))
    rewrite(file, json.dumps(tree).encode())


# ── Damage to a table ────────────────────────────────────────────────────────────────────────────────────────────

TABLE_KINDS = (
    *("drop column", "rename column", "swap columns", "null cell", "null column", "set cell", "set column"),
    *("as text", "as float", "as int8", "nan cell", "inf cell", "add one", "wider", "narrower", "constant"),
    *("drop row", "double row", "reverse rows", "swap rows", "no rows", "shuffle rows", "one more column"),
)
TABLE = st.tuples(st.sampled_from(TABLE_KINDS), PLACES, PLACES, SCALARS)


def damage_table(file: Path, how: tuple[str, int, int, Any]) -> bool:
    """Change one thing of a Parquet file, by column and row; False where Parquet cannot express it."""
    table = pd.read_parquet(file)
    if table.columns.empty:
        return False
    try:
        changed = damaged_frame(table, *how)
        buffer = io.BytesIO()
        changed.to_parquet(buffer)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError, AttributeError, NotImplementedError):
        return False
    rewrite(file, buffer.getvalue())
    return True


def damaged_frame(table: pd.DataFrame, kind: str, column: int, row: int, value: Any) -> pd.DataFrame:
    """``table`` with one thing changed."""
    name, other = (table.columns[(column + step) % len(table.columns)] for step in (0, 1))
    row = row % max(1, len(table))
    table = table.copy()
    rows = list(range(len(table)))
    match kind:
        case "drop column":
            return table.drop(columns=name)
        case "rename column":
            return table.rename(columns={name: f"{name}x"})
        case "swap columns":
            return table.rename(columns={name: other, other: name})
        case "one more column":
            return table.assign(more=[value] * len(table))
        case "drop row":
            return table.drop(index=table.index[row : row + 1])  # an earlier change may have left none
        case "double row":
            return pd.concat([table.iloc[: row + 1], table.iloc[row:]])
        case "reverse rows":
            return table.iloc[::-1]
        case "no rows":
            return table.iloc[:0]
        case "swap rows":
            rows[row], rows[row - 1] = rows[row - 1], rows[row]
            return table.iloc[rows]
        case "shuffle rows":
            return table.iloc[np.random.default_rng(column).permutation(len(table))]
    values = list(table[name])
    changes = {
        "null cell": lambda v: None,
        "set cell": lambda v: value,
        "nan cell": lambda v: _filled(v, np.nan),
        "inf cell": lambda v: _filled(v, np.inf),
        "null column": lambda v: None,
        "set column": lambda v: value,
        "as text": str,
        "as float": lambda v: np.asarray(v, dtype=np.float64) if np.ndim(v) else float(v),
        "as int8": lambda v: np.asarray(v).astype(np.int8),
        "add one": lambda v: v + 1,
        "wider": lambda v: np.append(v, 0.0),
        "narrower": lambda v: v[:-1],
        "constant": lambda v: values[0],
    }
    one_cell = kind.endswith("cell")
    table[name] = pd.Series(
        [changes[kind](v) if not one_cell or n == row else v for n, v in enumerate(values)], index=table.index
    )
    return table


def _filled(value: Any, number: float) -> Any:
    if not np.ndim(value):
        return number
    changed = np.asarray(value, dtype=np.float64).copy()
    changed[0] = number
    return changed
