"""Hand-written SVG: axes, lines, bars. Colours are CSS classes of the page, so one drawing serves light and dark.

Charts are drawn ``WIDTH`` units wide, about what a phone shows, so that text keeps its size there; wider screens
place them side by side.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

WIDTH = 360
TICK_HEIGHT = 12  # px, the font size of tick labels in the style sheet


def number(value: float, digits: int = 2) -> str:
    """A number for the reader: true minus sign, an en dash for NaN."""
    if math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share as the reader sees it."""
    return "–" if share != share else f"{100 * share:.1f} %"


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2, 5 · 10^k apart) between ``low`` and ``high``, at most ``most`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


@dataclass(frozen=True)
class Axis:
    """A linear axis from ``low`` to ``high`` with its name."""

    label: str
    low: float
    high: float
    most_ticks: int = 6
    whole: bool = False  # counts: ticks at whole numbers only

    @property
    def ticks(self) -> list[float]:
        ticks = nice_ticks(self.low, self.high, self.most_ticks)
        return [tick for tick in ticks if not self.whole or tick == round(tick)]

    def tick_label(self, tick: float) -> str:
        ticks = self.ticks
        step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(tick) or 1.0
        if step >= 1000 and all(value % 1000 == 0 for value in ticks):
            return "0" if tick == 0 else f"{tick / 1000:.0f}k"
        return number(tick, max(0, -math.floor(math.log10(step) + 1e-9)))


def axis_around(label: str, values: Sequence[float], *, include: Sequence[float] = (), **kwargs) -> Axis:
    """An axis that holds all finite ``values`` and ``include``, with room beyond each end that is not included."""
    finite = [float(value) for value in values if math.isfinite(value)]
    low, high = min([*finite, *include], default=0.0), max([*finite, *include], default=1.0)
    room = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    return Axis(label, low if low in include else low - room, high if high in include else high + room, **kwargs)


@dataclass
class Plot:
    """One pair of axes; draw, then :meth:`render`."""

    x: Axis
    y: Axis
    description: str  # for screen readers
    height: int = 230
    top: int = 30
    bottom: int = 42
    right: int = 16
    parts: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        return 14 + 7 * max(len(self.y.tick_label(tick)) for tick in self.y.ticks or [0.0])

    def px(self, value: float) -> float:
        """Data → drawing, horizontally."""
        share = (value - self.x.low) / (self.x.high - self.x.low)
        return round(self.left + share * (WIDTH - self.left - self.right), 1)

    def py(self, value: float) -> float:
        """Data → drawing, vertically."""
        share = (value - self.y.low) / (self.y.high - self.y.low)
        return round(self.height - self.bottom - share * (self.height - self.bottom - self.top), 1)

    def line(self, xs: Sequence[float], ys: Sequence[float], classes: str, title: str = "") -> None:
        """A polyline through the finite points; a gap where a value is missing."""
        commands, pen_down = [], False
        for x, y in zip(xs, ys, strict=True):
            if not math.isfinite(y):
                pen_down = False
                continue
            commands.append(f"{'L' if pen_down else 'M'}{self.px(x):g} {self.py(y):g}")
            pen_down = True
        if commands:
            self.parts.append(f'<path class="line {classes}" d="{"".join(commands)}">{_title(title)}</path>')

    def points(self, xs: Sequence[float], ys: Sequence[float], classes: str, radius: float | Sequence[float] = 2.5):
        """Circles."""
        radii = [radius] * len(xs) if isinstance(radius, int | float) else radius
        for x, y, r in zip(xs, ys, radii, strict=True):
            if math.isfinite(y):
                self.parts.append(f'<circle class="{classes}" cx="{self.px(x):g}" cy="{self.py(y):g}" r="{r:g}"/>')

    def bar(self, low: float, high: float, bottom: float, top: float, classes: str, title: str = "") -> None:
        """A rectangle from ``low`` to ``high``, one unit of the drawing apart from its neighbours."""
        x, width = self.px(low) + 0.5, self.px(high) - self.px(low) - 1
        y, height = self.py(top), self.py(bottom) - self.py(top)
        if height > 0:
            self.parts.append(
                f'<rect class="{classes}" x="{x:g}" y="{y:g}" width="{max(width, 0.8):.1f}" height="{height:.1f}">'
                f"{_title(title)}</rect>"
            )

    def vertical(self, value: float, classes: str, text: str = "") -> None:
        """A line across the plot at ``value`` with a text at its head, on the side with more room."""
        x, top, bottom = self.px(value), self.top, self.height - self.bottom
        self.parts.append(f'<path class="line {classes}" d="M{x:g} {top}V{bottom}"/>')
        left_side = x > WIDTH / 2
        anchor, shift = ("end", -5) if left_side else ("start", 5)
        if text:
            place = f'x="{x + shift:g}" y="{top + 10}" text-anchor="{anchor}"'
            self.parts.append(f'<text class="note" {place}>{html.escape(text)}</text>')

    def render(self, name: str = "") -> Markup:
        """The ``<svg>`` element; all text in it is escaped."""
        return Markup(
            f'<svg class="chart" viewBox="0 0 {WIDTH} {self.height}" role="img" data-chart="{html.escape(name)}" '
            f'aria-label="{html.escape(self.description, quote=True)}">{self._frame()}{"".join(self.parts)}</svg>'
        )

    def _frame(self) -> str:
        """Grid, tick labels and the names of both axes; the vertical one's stands above it, where it is read."""
        bottom, right = self.height - self.bottom, WIDTH - self.right
        grid, texts = [], []
        for tick in self.y.ticks:
            y = self.py(tick)
            grid.append(f"M{self.left} {y:g}H{right}")
            texts.append(f'<text x="{self.left - 6}" y="{y + 4:g}" text-anchor="end">{self.y.tick_label(tick)}</text>')
        for tick in self.x.ticks:
            x = self.px(tick)
            texts.append(f'<text x="{x:g}" y="{bottom + 16}" text-anchor="middle">{self.x.tick_label(tick)}</text>')
        ticks = "".join(f"M{self.px(tick):g} {bottom}v4" for tick in self.x.ticks)
        return (
            f'<path class="grid" d="{"".join(grid)}"/><path class="axis" d="M{self.left} {bottom}H{right}{ticks}"/>'
            f'<g class="ticks">{"".join(texts)}</g>'
            f'<text class="x-label" x="{(self.left + right) / 2:g}" y="{self.height - 6}" text-anchor="middle">'
            f"{html.escape(self.x.label)}</text>"
            f'<text class="y-label" x="2" y="{TICK_HEIGHT + 1}">{html.escape(self.y.label)}</text>'
        )


def _title(text: str) -> str:
    return f"<title>{html.escape(text)}</title>" if text else ""
