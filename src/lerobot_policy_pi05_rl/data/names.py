"""One name per dimension, from whatever form a dataset's feature has them in."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def dimension_names(feature: Mapping[str, Any], *, qualified: bool = False) -> list[str] | None:
    """(D,) the names of a LeRobot feature's dimensions, all different; None where it has none or they do not fit.

    Datasets have them as a list, as nested lists, as a mapping of a group to its names (``{"motors": [...]}``), of a
    name to its index (``{"delta_x": 0, ...}``) or of a name to how many dimensions it has (``{"pose": 6, "gripper":
    1}``), and as one name for several dimensions, given once or again and again, which are then numbered (``arm_0``,
    ``arm_1``, ...).

    Args:
        feature: with LeRobot's ``shape`` and ``names``.
        qualified: put a group's name before its own (``gripper.left``) wherever there is more than one group; else
            only where names would be alike.
    """
    size = int(np.prod(feature.get("shape") or (1,)))
    names = feature.get("names")
    if not names:
        return None
    counted = _counted(names, size)
    paths = counted if counted is not None else list(_leaves(names, ()))
    if len(paths) == 1 and size > 1:
        paths = [(*paths[0][:-1], f"{paths[0][-1]}_{index}") for index in range(size)]
    if len(paths) != size:
        return None
    plain, full = [path[-1] for path in paths], [".".join(path) for path in paths]
    grouped = len({path[:-1] for path in paths}) > 1
    chosen = full if grouped and (qualified or max(Counter(plain).values()) > 1) else plain
    chosen = _numbered(chosen)
    return chosen if len(set(chosen)) == size else None


def dimension_labels(feature: Mapping[str, Any], size: int) -> list[str]:
    """(size,) what to call a feature's dimensions: their names, or where it has none, their numbers."""
    names = dimension_names(feature) or []
    return names if len(names) == size else [str(number) for number in range(size)]


def _numbered(names: list[str]) -> list[str]:
    """Names that come several times with a number behind each."""
    often, seen = Counter(names), Counter()
    numbered = []
    for name in names:
        numbered.append(f"{name}_{seen[name]}" if often[name] > 1 else name)
        seen[name] += 1
    return numbered


def _counted(names: Any, size: int) -> list[tuple[str, ...]] | None:
    """The names of a mapping to indices, or to numbers of dimensions; None if it is neither."""
    if not isinstance(names, Mapping) or not all(type(value) is int for value in names.values()):
        return None
    if sorted(names.values()) == list(range(size)):
        return [(str(name),) for name, _ in sorted(names.items(), key=lambda item: item[1])]
    if sum(names.values()) != size or min(names.values()) < 0:
        return None
    return [
        (str(name),) if count == 1 else (str(name), f"{name}_{index}")
        for name, count in names.items()
        for index in range(count)
    ]


def _leaves(names: Any, groups: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every name with the groups it lies in, in order; a group without names of its own is a name."""
    if isinstance(names, Mapping):
        for group, within in names.items():
            if within is None or isinstance(within, int | float):
                yield (*groups, str(group))
            else:
                yield from _leaves(within, (*groups, str(group)))
    elif isinstance(names, list | tuple | np.ndarray):
        for name in names:
            yield from _leaves(name, groups)
    else:
        yield (*groups, str(names))
