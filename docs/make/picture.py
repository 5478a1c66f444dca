"""Draw keys of a run's metrics.jsonl over its steps: `python docs/make/picture.py RUN_FOLDER KEY... > FILE.svg`."""

import json
import math
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 280, 48, 12, 36, 36
COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #374151 } .grid { stroke: #e5e7eb } rect { fill: #ffffff }
@media (prefers-color-scheme: dark) { text { fill: #d1d5db } .grid { stroke: #374151 } rect { fill: #0d1117 } }
"""


def draw(rows: list[dict[str, float]], keys: list[str]) -> str:
    """An SVG with a line for each key; one of few values has its points marked."""
    curves = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in keys}
    empty = [key for key, points in curves.items() if not points]
    if empty:
        raise SystemExit(f"no values of {', '.join(empty)}; there are {', '.join(sorted(set().union(*rows)))}")
    steps, values = zip(*(point for points in curves.values() for point in points), strict=True)
    last, ticks = max(steps), _ticks(min(0.0, *values), max(values))
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f'<title>{", ".join(keys)} by step</title><style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}"/>',
    ]
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, last):
        if tick <= last:
            parts.append(f'<text x="{x(tick)}" y="{HEIGHT - 14}" text-anchor="middle">{tick:g}</text>')
    for i, (key, points) in enumerate(curves.items()):
        line = " ".join(f"{x(step)},{y(value)}" for step, value in points)
        parts.append(f'<polyline fill="none" stroke="{COLORS[i % 4]}" stroke-width="2" points="{line}"/>')
        if len(points) <= 12:
            parts += [f'<circle cx="{x(s)}" cy="{y(v)}" r="3.5" fill="{COLORS[i % 4]}"/>' for s, v in points]
        parts.append(
            f'<text x="{LEFT + 170 * i}" y="20" style="fill:{COLORS[i % 4]}">{key}: {points[-1][1]:.3g}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers around a range."""
    size = 10 ** math.floor(math.log10((high - low) / 4))
    size *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= 7)
    first, last = math.floor(low / size), math.ceil(high / size - 1e-9)
    return [round(size * i, 10) for i in range(first, last + 1)]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    lines = (Path(sys.argv[1]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    sys.stdout.write(draw([json.loads(line) for line in lines], sys.argv[2:]))
