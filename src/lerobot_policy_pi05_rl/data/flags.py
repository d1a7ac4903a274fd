"""Columns in which people say yes, no, or nothing at all: success, intervention, a time limit.

What is not a clear yes or no (null, NaN, −1, an empty text, any other number or word) is *unknown*: nobody said.
"""

from typing import Any

import numpy as np

from .sources import DatasetError, Source

YES, NO, CUT, UNKNOWN = 1, 0, 2, -1  # CUT: a text says that a time limit ended it
WORDS = {
    **dict.fromkeys(("true", "yes", "y", "1", "1.0", "success", "successful", "succeeded", "succeed"), YES),
    **dict.fromkeys(("false", "no", "n", "0", "0.0", "failure", "failed", "fail", "unsuccessful"), NO),
    **dict.fromkeys(("truncated", "timeout", "time_limit", "cut_off"), CUT),
}


def parse_flags(values: np.ndarray) -> np.ndarray:
    """(N,) values of any type, or lists and arrays of one → (N,) int8 ``YES``, ``NO``, ``CUT``, ``UNKNOWN``."""
    if values.dtype == bool:
        return values.astype(np.int8)
    if np.issubdtype(values.dtype, np.number):
        return np.where(values == 1, YES, np.where(values == 0, NO, UNKNOWN)).astype(np.int8)
    return np.array([parse_flag(value) for value in values.tolist()], dtype=np.int8)


def parse_flag(value: Any) -> int:
    """One value of :func:`parse_flags`."""
    if isinstance(value, list | tuple | np.ndarray):
        return parse_flag(value[0]) if len(value) == 1 else UNKNOWN
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        return WORDS.get(value.strip().lower(), UNKNOWN)
    if value is None or not isinstance(value, bool | int | float | np.number | np.bool_):
        return UNKNOWN
    return YES if value == 1 else NO if value == 0 else UNKNOWN


def raw_column(source: Source, name: str) -> np.ndarray | None:
    """(frames,) the column as recorded, texts and lists of one included; None if ``source`` has none.

    Raises:
        DatasetError: it does not hold one value a frame.
    """
    values = source.columns.get(name)
    if values is None:
        feature = getattr(source.dataset, "meta", None) and source.features.get(name)
        if not feature or feature["dtype"] in ("image", "video"):
            return None
        table = source.dataset.hf_dataset.data
        own = source.alignment.own_name(name)
        if own not in table.column_names:
            return None
        values = np.empty(table.num_rows, dtype=object)
        values[:] = table.column(own).to_pylist()
    frames = int(source.ends[-1]) if len(source.ends) else 0
    if values.size != frames:
        raise DatasetError(
            f"dataset {source.name}: the column {name} holds {values.size / max(1, frames):g} values a frame; a label "
            "is one value a frame. Rename the column, or give outcomes as a CSV (reward.outcome_file)"
        )
    return values.reshape(-1)


def number_column(source: Source, name: str) -> np.ndarray | None:
    """(frames,) float64 of a column of one number a frame, NaN where it holds none; None if ``source`` has none."""
    values = raw_column(source, name)
    if values is None or values.dtype != object:
        return None if values is None else values.astype(np.float64)
    single = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values.tolist()]
    return np.array([value if isinstance(value, int | float) else np.nan for value in single], dtype=np.float64)


def flag_columns(source: Source, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of these columns that ``source`` has → (frames,) flags, in this order."""
    found = {name: raw_column(source, name) for name in names}
    return {name: parse_flags(values) for name, values in found.items() if values is not None}


def describe_unknown(source: Source, name: str, flags: np.ndarray, consequence: str) -> str | None:
    """A sentence on what a column leaves open; None where it is a clear yes or no on every frame.

    Args:
        flags: (frames,) of the column.
        consequence: what unknown means there.
    """
    unknown = flags == UNKNOWN
    if not unknown.any():
        return None
    values = raw_column(source, name)[unknown]
    seen = list(dict.fromkeys(map(repr, values.tolist())))
    shown = ", ".join(seen[:4]) + (", …" if len(seen) > 4 else "")
    episodes = np.add.reduceat(unknown, source.starts)
    return (
        f"dataset {source.name}: {name} is neither yes nor no ({shown}) on {int(unknown.sum())} frames of "
        f"{int((episodes > 0).sum())} episodes; {consequence}"
    )
