"""Columns of Parquet files as the dataset declares them: by name, type and shape, whatever encoding they came in."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from ...errors import DatasetError
from .metadata import is_shape, read_table

Columns = dict[str, np.ndarray]


def read_columns(
    files: Iterable[Path],
    features: Mapping[str, Mapping[str, Any]],
    *,
    vectors: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    episodes: list[int] | None = None,
) -> Columns:
    """The columns ``features`` of ``files``, one row per frame, in the order of the files.

    Args:
        features: name → LeRobot's ``dtype`` and ``shape``.
        vectors: those that are (frames, D) even where D is 1; others of one number are (frames,).
        optional: those in which a value may be unknown: null is NaN there. (It is NaN in floating-point columns, too.)
        episodes: only rows of these; None: all.

    Returns:
        name → (frames,) or (frames, D) of the declared dtype; float32 for optional ones with unknown values, objects
        for texts.

    Raises:
        DatasetError: a column is missing, or holds something else than declared.
    """
    chosen = None if episodes is None else pads.field("episode_index").isin(pa.array(episodes, type=pa.int64()))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in features}
    for path in files:
        table = read_table(path, list(features), chosen)
        for name, feature in features.items():
            place = f"{path}: column {name}"
            width = _width(place, feature)
            values = _values(place, table.column(name), width, feature["dtype"])
            values = _as_declared(place, values, feature["dtype"], optional=name in optional)
            parts[name].append(values if width > 1 or name in vectors else values.reshape(-1))
    return {name: _joined(parts.pop(name)) for name in features}


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array; a single part is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _width(place: str, feature: Mapping[str, Any]) -> int:
    shape = feature.get("shape")
    if not is_shape(shape):
        raise DatasetError(
            f"{place}: meta/info.json declares the shape {shape!r:.100}, not a list of positive integers"
        )
    return int(np.prod(shape, dtype=np.int64))


def _values(place: str, column: pa.ChunkedArray, width: int, dtype: str) -> np.ndarray:
    """(rows, width) numbers or (rows, 1) objects; NaN (None) where a row or a number is null."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    if column.num_chunks == 0:
        array = pa.array([], type=column.type)
    array = _plain(array)
    known = None
    if array.null_count and not pa.types.is_null(array.type) and _is_list(array.type):
        known = np.asarray(array.is_valid())
        array = array.drop_null()
    rows, size = len(array), 1
    while _is_list(array.type):
        lengths = pc.list_value_length(array)
        if array.null_count:
            raise DatasetError(f"{place} has a list without values inside a row; {_declared(dtype, width)}")
        longest = pc.max(lengths).as_py() or 0
        uneven = np.flatnonzero(np.asarray(lengths) != longest)
        if uneven.size:
            row = int(uneven[0]) * rows // max(1, len(array))
            raise DatasetError(
                f"{place}: row {row} holds {lengths[int(uneven[0])].as_py()} values, others {longest}; "
                f"{_declared(dtype, width)}"
            )
        size *= longest
        array = _plain(array.flatten())
    if rows and size != width:
        raise DatasetError(f"{place} holds {size} values a row; {_declared(dtype, width)}")
    values = _numbers(place, array, dtype, width).reshape(rows, width)
    if known is None:
        return values
    full = np.full((len(known), width), None if values.dtype.kind == "O" else np.nan, dtype=_with_nan(values.dtype))
    full[known] = values
    return full


def _plain(array: pa.Array) -> pa.Array:
    """Without an extension type or a dictionary around it."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _with_nan(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.kind == "O" or np.issubdtype(dtype, np.floating) else np.dtype(np.float64)


def _numbers(place: str, array: pa.Array, dtype: str, width: int) -> np.ndarray:
    """Flat; null is NaN. Texts stay texts where text is declared."""
    kind = array.type
    if dtype == "string":
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise DatasetError(f"{place} holds {kind}; {_declared(dtype, width)}")
        return np.array(array.to_pylist(), dtype=object)
    if pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DatasetError(
            f"{place} holds {kind}; {_declared(dtype, width)}. Write the column as {dtype}, or correct meta/info.json"
        )
    return array.to_numpy(zero_copy_only=False)


def _as_declared(place: str, values: np.ndarray, dtype: str, *, optional: bool) -> np.ndarray:
    """``values`` in the declared dtype, where that loses nothing but digits."""
    if dtype == "string":
        return values
    try:
        target = np.dtype(dtype)
    except TypeError:
        target = np.dtype(object)
    if target.kind not in "fiub":
        raise DatasetError(f"{place}: meta/info.json declares the dtype {dtype!r}, which is no number")
    if target.kind == "f":
        with np.errstate(over="ignore"):  # infinity is found, and named, later
            return values.astype(target, copy=False)
    if values.dtype == target:
        return values
    if values.dtype.kind == "f":
        unknown = np.isnan(values)
        if unknown.any():
            if optional:
                return values.astype(np.float32)
            raise DatasetError(
                f"{place}: row {int(np.argwhere(unknown)[0][0])} is null or NaN; it is declared {dtype}"
            )
    with np.errstate(invalid="ignore", over="ignore"):
        converted = values.astype(target)
    different = converted != values
    if different.any():
        row, entry = np.argwhere(different)[0]
        raise DatasetError(f"{place}: row {row} holds {values[row, entry]:.9g}, which is no {dtype} as declared")
    return converted


def _declared(dtype: str, width: int) -> str:
    return f"meta/info.json declares {width} × {dtype}"
