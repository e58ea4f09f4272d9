"""Draws training.csv of several checkpoints into one SVG.

python plot_loss.py OUT.svg CHECKPOINT...
"""

import csv
import math
import pathlib
import sys

WIDTH, HEIGHT, LEFT, TOP = 640, 320, 56, 28
COLOURS = ("#2f6fde", "#d9822b")


def curve(rows, column, longest, low, high):
    points = []
    for row in rows:
        x = LEFT + (WIDTH - LEFT - 16) * float(row["seconds"]) / longest
        share = (math.log(float(row[column])) - low) / (high - low)
        points.append(f"{x:.1f},{HEIGHT - 36 - (HEIGHT - TOP - 44) * share:.1f}")
    return " ".join(points)


def main():
    out, *folders = map(pathlib.Path, sys.argv[1:])
    runs = {f.name: list(csv.DictReader(open(f / "training.csv"))) for f in folders}
    longest = max(float(rows[-1]["seconds"]) for rows in runs.values())
    losses = [float(r["held_out_loss"]) for rows in runs.values() for r in rows]
    low, high = math.log(min(losses)), math.log(max(losses))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="18">flow matching loss on episodes that were kept back, '
        "averaged weights</text>",
    ]
    for value in (1, 0.5, 0.2, 0.1, 0.05, 0.02):
        if low <= math.log(value) <= high:
            y = HEIGHT - 36 - (HEIGHT - TOP - 44) * (math.log(value) - low) / (high - low)
            parts.append(
                f'<path d="M{LEFT} {y:.1f}H{WIDTH - 16}" stroke="#ddd"/>'
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
            )
    for minutes in range(0, int(longest / 60) + 1, 10):
        x = LEFT + (WIDTH - LEFT - 16) * minutes * 60 / longest
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{minutes} min</text>'
        )
    for (name, rows), colour in zip(runs.items(), COLOURS, strict=False):
        points = curve(rows, "held_out_loss", longest, low, high)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        last = points.split()[-1].split(",")
        parts.append(
            f'<text x="{float(last[0]) - 4:.1f}" y="{float(last[1]) - 8:.1f}" fill="{colour}" '
            f'text-anchor="end">{name}</text>'
        )
    out.write_text("\n".join([*parts, "</svg>", ""]))


if __name__ == "__main__":
    main()
