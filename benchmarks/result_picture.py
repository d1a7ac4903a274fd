"""README's picture: the demo's policies, drawn from ``benchmarks/results/closed_loop/pretrained/results.json``.

That file holds what ``python benchmarks/closed_loop.py`` measured; nothing is computed here. ``python
benchmarks/result_picture.py`` writes ``docs/images/result.png``.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "closed_loop" / "pretrained" / "results.json"
# Variant of the benchmark → what a newcomer calls it.
BARS = {
    "bc": "cloning all episodes",
    "filtered_frames": "cloning the frames that\nRECAP's labels call good",
    "recap": "RECAP (the default)",
}
GREY, BLUE, INK = "#a9b0b8", "#1f6fb4", "#24292f"


def read_rows(path: Path, mix: str) -> list[dict[str, Any]]:
    """The benchmark's rows of ``BARS``, in that order.

    Raises:
        ValueError: the file has no such mix, or a policy is missing.
    """
    results = json.loads(path.read_text())
    rows = {row["variant"]: row for row in results.get(mix, [])}
    missing = [name for name in BARS if name not in rows]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)} of the mix {mix}; its mixes are {', '.join(results)}")
    return [rows[name] for name in BARS]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Two panels, a bar a policy: successes per 1000 steps, and the share of successful episodes. Whiskers are 95 %
    intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (("per_1000_steps", 1.0, "successes per 1000 control steps", "{:.1f}"),)
    panels += (("success", 100.0, "successful episodes (%)", "{:.0f} %"),)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 2.7), layout="constrained", sharey=True)
    for axis, (key, scale, title, form) in zip(axes, panels, strict=True):
        for place, row in enumerate(rows):
            point, low, high = (scale * value for value in row[key])
            ours = row["variant"] == "recap"
            whiskers = {"elinewidth": 1.2, "ecolor": INK, "capsize": 3}
            axis.barh(
                place,
                point,
                xerr=[[point - low], [high - point]],
                color=BLUE if ours else GREY,
                height=0.62,
                error_kw=whiskers,
            )
            weight = "bold" if ours else "normal"
            inside = {"va": "center", "weight": weight, "color": "white" if ours else INK}
            axis.text(0.02 * axis_end(rows, key, scale), place, form.format(point), **inside)
        axis.set_xlim(0, axis_end(rows, key, scale))
        axis.set_title(title, fontsize=11, loc="left", color=INK)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [BARS[row["variant"]] for row in rows], fontsize=11)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def axis_end(rows: list[dict[str, Any]], key: str, scale: float) -> float:
    """Where a panel's axis ends: right of the longest whisker."""
    return 1.05 * max(scale * row[key][2] for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--mix", default="demo")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images" / "result.png")
    args = parser.parse_args(argv)
    draw(read_rows(args.results, args.mix), args.output)
    print(f"{args.output} drawn from {args.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
