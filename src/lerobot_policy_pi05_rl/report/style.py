"""The page's style sheet. Every colour is a variable with a light and a dark value; text meets WCAG AA in both."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f6f7f9; --rule: #d9dde3; --grid: #e9ecf0;
  --ink: #1a1f26; --muted: #57606c;
  --success: #0b6bb0; --failure: #b8500a; --truncated: #6a7280;
  --positive: #0a7a6c; --negative: #858f9c; --held-out: #7a3fa8; --bar-hatch: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --panel: #1a2027; --rule: #343c47; --grid: #262d36;
    --ink: #e7eaee; --muted: #a3adb9;
    --success: #62b3ee; --failure: #f0a04b; --truncated: #a8b0bb;
    --positive: #3fbfa9; --negative: #66717e; --held-out: #c79bf0; --bar-hatch: #12161b;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1200px; padding: 32px 24px 64px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1, h2, h3, h4 { line-height: 1.25; margin: 0; font-weight: 650; overflow-wrap: anywhere; text-wrap: balance; }
h1 { font-size: 1.75rem; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin-top: 48px; padding-top: 16px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.0625rem; margin: 28px 0 0; }
h4 { font-size: 0.9375rem; }
p { margin: 8px 0 0; max-width: 72ch; }
a { color: var(--success); }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.eyebrow, .muted, figcaption { color: var(--muted); }
.eyebrow { font-size: 0.875rem; margin: 0 0 4px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 16px 0 0;
  font-size: 0.9375rem; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 0;
  padding: 0; list-style: none; }
.tiles li { background: var(--panel); border-radius: 8px; padding: 12px 16px; }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--muted); font-size: 0.875rem; }
table { border-collapse: collapse; width: 100%; margin: 16px 0 0; font-size: 0.9375rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 0 7px 16px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--muted); font-weight: 500; font-size: 0.875rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; }
tr.total td { font-weight: 650; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 28px 32px;
  margin: 20px 0 0; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 0.875rem; line-height: 1.45; margin-top: 6px; max-width: 46ch; }
.chart { display: block; width: 100%; max-width: 440px; height: auto; margin-top: 6px; overflow: visible; }
.chart text { fill: var(--muted); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
.chart .x-label, .chart .y-label { fill: var(--ink); }
.chart .note { fill: var(--ink); paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
.chart .grid { stroke: var(--grid); fill: none; }
.chart .axis { stroke: var(--muted); fill: none; }
.line { fill: none; stroke: var(--ink); stroke-width: 1.5; stroke-linejoin: round; stroke-linecap: round; }
.thin { stroke-width: 1; stroke-opacity: 0.38; }
.mean { stroke-width: 3; }
.other { stroke-width: 2; }
.line.success { stroke: var(--success); }
.line.failure { stroke: var(--failure); }
.line.truncated { stroke: var(--truncated); }
.mean.failure { stroke-dasharray: 8 5; stroke-linecap: butt; }
.mean.truncated { stroke-dasharray: 2 5; }
.bar.success { fill: var(--success); }
.bar.failure { fill: url(#hatch-failure); stroke: var(--failure); stroke-width: 1; }
.bar.truncated { fill: url(#dots-truncated); stroke: var(--truncated); stroke-width: 1; }
.bar.positive { fill: var(--positive); }
.bar.negative { fill: var(--negative); }
.bar.plain-fill { fill: var(--negative); }
.line.threshold { stroke: var(--ink); stroke-dasharray: 4 3; stroke-linecap: butt; }
.line.diagonal { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 4 4; }
.line.plain { stroke: var(--ink); stroke-width: 1; stroke-opacity: 0.5; }
.point { fill: var(--success); stroke: var(--page); stroke-width: 1.5; }
.curve.train { stroke: var(--ink); }
.curve.held-out { stroke: var(--held-out); stroke-dasharray: 6 4; stroke-width: 2; stroke-linecap: butt; }
.dot.train { fill: var(--ink); }
.dot.held-out { fill: var(--held-out); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0 0; padding: 0; list-style: none;
  font-size: 0.8125rem; color: var(--ink); }
.legend li { display: inline-flex; align-items: center; gap: 6px; }
.legend svg { flex: none; }
.defs { position: absolute; width: 0; height: 0; }
.moments { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 500px), 1fr)); gap: 0 40px; }
.moment { margin-top: 20px; }
.moment p { font-size: 0.875rem; margin-top: 2px; }
.strip { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 8px 6px; margin: 10px 0 0; padding: 0;
  list-style: none; }
.strip li { font-size: 0.8125rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
.strip img { display: block; width: 100%; height: auto; }
.strip .shots { display: grid; gap: 2px; border-radius: 4px; overflow: hidden; }
.strip .now .shots { outline: 3px solid var(--ink); outline-offset: 1px; }
.strip .meter { display: block; height: 5px; margin: 6px 0 3px; background: var(--rule); border-radius: 3px; }
.strip .meter i { display: block; height: 100%; border-radius: 3px; background: var(--success); }
.strip .at { color: var(--muted); }
.strip .now .at { color: var(--ink); font-weight: 650; }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--rule); font-size: 0.875rem;
  color: var(--muted); }
@media (min-width: 760px) {
  .charts > figure:only-child { grid-column: 1 / -1; display: grid; grid-template-columns: 380px 1fr; gap: 0 32px; }
  figure:only-child > h4, figure:only-child > .legend { grid-column: 1 / -1; }
  figure:only-child > figcaption { align-self: end; margin-bottom: 44px; }
}
@media (max-width: 640px) {
  body { padding: 20px 16px 48px; }
  h1 { font-size: 1.5rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 8px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  thead { display: none; }
  table, tbody, tr, td { display: block; }
  tr { padding: 10px 0; border-bottom: 1px solid var(--rule); }
  td { border: 0; padding: 2px 0; display: flex; justify-content: space-between; gap: 16px; }
  td::before { content: attr(data-label); color: var(--muted); text-align: left; }
  td:first-child { font-weight: 650; display: block; }
  td:first-child::before { content: none; }
  .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); }
}
@media print { body { max-width: none; padding: 0; } figure, .moment { break-inside: avoid; } }
"""

# Hatches tell outcomes apart without colour; one definition serves every chart of the page.
PATTERNS = """<svg class="defs" aria-hidden="true"><defs>
<pattern id="hatch-failure" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="5" height="5" fill="var(--bar-hatch)"/><rect width="2.5" height="5" fill="var(--failure)"/></pattern>
<pattern id="dots-truncated" width="5" height="5" patternUnits="userSpaceOnUse">
<rect width="5" height="5" fill="var(--bar-hatch)"/>
<circle cx="2.5" cy="2.5" r="1.2" fill="var(--truncated)"/></pattern>
</defs></svg>"""
