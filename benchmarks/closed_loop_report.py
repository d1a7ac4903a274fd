"""Tables and picture of ``closed_loop.py``: pooled over seeds, with intervals that resample seeds, of each seed's
trainings one for each, and their episodes."""

import json
from pathlib import Path

import numpy as np

RESAMPLES = 4000
RIVALS = {"bc": "cloning", "filtered_frames": "filtered frames", "awr": "AWR", "recap": "RECAP"}
Cell = tuple[np.ndarray, np.ndarray]  # (episodes,) success, steps
Cells = dict[int, list[Cell]]  # seed → one for each training seed, the first's first


def write_report(output: Path, labels: dict[str, str], main: tuple[str, ...]) -> None:
    """``table.md`` and ``results.png`` of the ``main`` variants, ``ablations.md`` of the others, ``results.json`` of
    all, in ``output``, from every ``eval_*.json`` below it. A variant without a label keeps its name."""
    output.mkdir(parents=True, exist_ok=True)
    results = read_results(output)
    labels = labels | {name: name for by_name in results.values() for name in by_name if name not in labels}
    rows = {
        mix: [summarize(name, cells, by_name) for name, cells in by_name.items()] for mix, by_name in results.items()
    }
    for mix_rows in rows.values():
        mix_rows.sort(key=lambda row: list(labels).index(row["variant"]))
    (output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    of_main = {mix: [row for row in mix_rows if row["variant"] in main] for mix, mix_rows in rows.items()}
    others = {mix: [row for row in mix_rows if row["variant"] not in main] for mix, mix_rows in rows.items()}
    tables = [
        table(mix, mix_rows, labels) + task_table(output / mix, labels, main) for mix, mix_rows in of_main.items()
    ]
    (output / "table.md").write_text("\n".join(tables))
    ablations = [ablation_table(mix, mix_rows, labels) for mix, mix_rows in others.items() if mix_rows]
    (output / "ablations.md").write_text("\n".join(ablations))
    if rows:
        draw(of_main, labels, output / "results.png")


def read_results(output: Path) -> dict[str, dict[str, Cells]]:
    """mix → variant → seed → a cell for each training seed."""
    results: dict[str, dict[str, Cells]] = {}
    files = [(seed_of(file), file) for file in output.glob("*/seed*/eval_*.json")]
    for seed, file in sorted(files):  # "eval_bc.json" before "eval_bc.training1.json"
        mix = file.parts[-3]
        data, variant = json.loads(file.read_text()), file.stem.removeprefix("eval_").partition(".")[0]
        cell = (np.array(data["success"], dtype=bool), np.array(data["steps"]))
        results.setdefault(mix, {}).setdefault(variant, {}).setdefault(seed, []).append(cell)
    return results


def seed_of(file: Path) -> int:
    """Of an evaluation, by its folder."""
    return int(file.parent.name.removeprefix("seed"))


def every(cells: Cells) -> list[Cell]:
    """Of all seeds and trainings."""
    return [cell for trainings in cells.values() for cell in trainings]


def summarize(name: str, cells: Cells, by_name: dict[str, Cells]) -> dict:
    """One row: success, steps to success, successes per 1000 steps, each with an interval, and ratios to the rivals
    over the seeds that both have."""
    row = {"variant": name, "seeds": sorted(cells)}
    row["success"] = [success(every(cells)), *interval(cells, success)]
    row["steps_to_success"] = float(np.mean(np.concatenate([steps[won] for won, steps in every(cells)])))
    row["per_1000_steps"] = [throughput(every(cells)), *interval(cells, throughput)]
    row["per_seed"] = {seed: [success(trainings), throughput(trainings)] for seed, trainings in cells.items()}
    row["per_training"] = {
        seed: [throughput([cell]) for cell in trainings] for seed, trainings in cells.items() if len(trainings) > 1
    }
    halves = {half: [seed for seed in cells if seed % 2 == half] for half in (0, 1)}  # 1: no vector instructions
    row["by_processor"] = {
        half: throughput([cell for seed in seeds for cell in cells[seed]]) for half, seeds in halves.items() if seeds
    }
    for rival in RIVALS:
        shared = sorted(set(cells) & set(by_name.get(rival, {})))
        if rival != name and shared:
            row[f"ratio_to_{rival}"] = ratio(cells, by_name[rival], shared, throughput)
            row[f"failures_to_{rival}"] = ratio(cells, by_name[rival], shared, failure)
    return row


def throughput(cells: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Successes per 1000 steps, failed episodes' steps counted."""
    return 1000.0 * sum(won.sum() for won, _ in cells) / sum(steps.sum() for _, steps in cells)


def success(cells: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of successful episodes."""
    return float(np.mean(np.concatenate([won for won, _ in cells])))


def failure(cells: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Share of failed episodes."""
    return 1.0 - success(cells)


def interval(cells: Cells, statistic) -> tuple[float, float]:
    """95 % percentile bootstrap: seeds with replacement, of each one of its trainings, then episodes within that."""
    rng, seeds = np.random.default_rng(0), sorted(cells)
    values = [statistic(_resample(cells, rng.choice(seeds, len(seeds)), rng)) for _ in range(RESAMPLES)]
    return tuple(np.quantile(values, [0.025, 0.975]).tolist())


def ratio(ours: Cells, theirs: Cells, seeds: list[int], statistic) -> list[float]:
    """[ratio, low, high] of a statistic; the bootstrap draws the same seeds for both (they share data and start
    states)."""
    rng, values = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.choice(seeds, len(seeds))
        below = statistic(_resample(theirs, drawn, rng))
        values.append(statistic(_resample(ours, drawn, rng)) / max(below, 1e-9))
    above, below = (statistic([cell for seed in seeds for cell in cells[seed]]) for cells in (ours, theirs))
    point = above / max(below, 1e-9)
    return [point, *np.quantile(values, [0.025, 0.975]).tolist()]


def _resample(cells: Cells, seeds, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    drawn = []
    for seed in seeds:
        won, steps = cells[seed][rng.integers(len(cells[seed]))]
        index = rng.integers(len(won), size=len(won))
        drawn.append((won[index], steps[index]))
    return drawn


def table(mix: str, rows: list[dict], labels: dict[str, str]) -> str:
    """Markdown."""
    rivals = list(RIVALS)[:3]
    columns = ["success", "steps to success", "successes per 1000 steps", *(f"× {RIVALS[rival]}" for rival in rivals)]
    first = next(iter(rows))["seeds"] if rows else []
    lines = _head(mix, [*columns, "failures × cloning", f"seeds {', '.join(map(str, first))}"])
    for row in rows:
        cells = [with_interval(row["success"], 2), f"{row['steps_to_success']:.1f}"]
        cells.append(with_interval(row["per_1000_steps"], 1))
        cells += [with_interval(row.get(f"ratio_to_{rival}"), 2) for rival in rivals]
        cells += [with_interval(row.get("failures_to_bc"), 2), per_seed(row)]
        lines.append(f"| {labels[row['variant']]} | {' | '.join(cells)} |")
    return "\n".join([*lines, *spreads(rows, labels), *processors(rows, labels)]) + "\n"


def spreads(rows: list[dict], labels: dict[str, str]) -> list[str]:
    """What training alone makes, where a seed has several: the largest over the smallest, seed by seed."""
    found = []
    for row in (row for row in rows if row["per_training"]):
        each = [
            f"{max(values) / min(values):.2f} ({', '.join(f'{value:.1f}' for value in values)})"
            if min(values)
            else "∞"
            for values in row["per_training"].values()
        ]
        found.append(f"{labels[row['variant']]} {'; '.join(each)}")
    return ["", f"Largest over smallest training seed of a recording: {'. '.join(found)}."] if found else []


def processors(rows: list[dict], labels: dict[str, str]) -> list[str]:
    """The seeds that ran with vector instructions beside those that ran without."""
    both = [row for row in rows if len(row["by_processor"]) == 2]
    each = [f"{labels[row['variant']]} {row['by_processor'][0]:.1f}, {row['by_processor'][1]:.1f}" for row in both]
    return (
        ["", f"With the machine's vector instructions (even seeds), without (odd): {'; '.join(each)}."] if each else []
    )


def task_table(folder: Path, labels: dict[str, str], main: tuple[str, ...]) -> str:
    """Markdown of a mix with several tasks: success and successes per 1000 steps of each, all seeds together."""
    found: dict[str, dict[str, list[tuple[bool, int]]]] = {}
    for file in sorted(folder.glob("seed*/eval_*.json")):
        data, name = json.loads(file.read_text()), file.stem.removeprefix("eval_")
        name = name.partition(".")[0]
        if name in main and "task" in data:
            for task, won, steps in zip(data["task"], data["success"], data["steps"], strict=True):
                found.setdefault(name, {}).setdefault(task, []).append((won, steps))
    if not found:
        return ""
    tasks = list(next(iter(found.values())))
    lines = ["", "By task, success and successes per 1000 steps:", ""]
    lines += [f"| policy | {' | '.join(tasks)} |", f"| --- |{' ---: |' * len(tasks)}"]
    for name in (name for name in main if name in found):
        cells = [np.array(found[name][task]).sum(axis=0) for task in tasks]
        counts = [len(found[name][task]) for task in tasks]
        texts = [
            f"{won / count:.2f}, {1000 * won / steps:.1f}" for (won, steps), count in zip(cells, counts, strict=True)
        ]
        lines.append(f"| {labels[name]} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def ablation_table(mix: str, rows: list[dict], labels: dict[str, str]) -> str:
    """Markdown; each against RECAP on the seeds that both have."""
    columns = ["seeds", "success", "successes per 1000 steps", "× RECAP", "× cloning", "of each seed"]
    lines = _head(mix, columns)
    for row in rows:
        cells = [", ".join(map(str, row["seeds"])), with_interval(row["success"], 2)]
        cells += [with_interval(row["per_1000_steps"], 1)]
        cells += [with_interval(row.get(f"ratio_to_{rival}"), 2) for rival in ("recap", "bc")] + [per_seed(row)]
        lines.append(f"| {labels[row['variant']]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _head(mix: str, columns: list[str]) -> list[str]:
    aligned = ["---:" if column not in ("seeds", "of each seed") else "---" for column in columns]
    return [f"Mix `{mix}`:\n", f"| policy | {' | '.join(columns)} |", f"| --- | {' | '.join(aligned)} |"]


def per_seed(row: dict) -> str:
    return ", ".join(f"{value[1]:.1f}" for value in row["per_seed"].values())


def with_interval(values: list[float] | None, digits: int) -> str:
    if values is None:
        return ""
    point, low, high = values
    return f"{point:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def draw(rows: dict[str, list[dict]], labels: dict[str, str], path: Path) -> None:
    """Successes per 1000 steps of every variant, one panel a mix; dots are seeds, bars 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = 0.9 + 0.34 * max(len(mix_rows) for mix_rows in rows.values())
    figure, axes = plt.subplots(
        1, len(rows), figsize=(1.6 + 3.2 * len(rows), height), layout="constrained", squeeze=False
    )
    for axis, (mix, mix_rows) in zip(axes[0], rows.items(), strict=True):
        for place, row in enumerate(mix_rows):
            point, low, high = row["per_1000_steps"]
            colour = "#1f77b4" if row["variant"].startswith("recap") else "#7f7f7f"
            axis.barh(place, point, xerr=[[point - low], [high - point]], color=colour, alpha=0.55, error_kw={"lw": 1})
            dots = [value[1] for value in row["per_seed"].values()]
            axis.plot(dots, [place] * len(dots), "o", color=colour, ms=3.5)
        axis.set_yticks(range(len(mix_rows)), [labels[row["variant"]] for row in mix_rows], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_title(f"mix: {mix}", fontsize=9)
        axis.set_xlabel("successes per 1000 steps", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
