#!/usr/bin/env python3
"""A predicted latency of full-size policies on Tenstorrent cards, beside what others published.

    tools/predict_latency.py [--json]

Predicted, not measured: no line of tendon has run on such a card. Every call of the mapping (padded
to tiles as src/backends/ttnn does it) takes the longer one of its arithmetic at the peak of all
cores and its bytes at the bandwidth of DRAM, and a gap to the next call. Fitted to nothing, so the
error that is printed is the model's own. Two cameras and 32 tokens of prompt, as published.
"""
import json
import math
import sys

TILE = 32
# Cores, GHz, GB/s of DRAM, as the vendor states them.
CARDS = {"N300, one of its two chips": (64, 1.0, 288), "P150": (130, 1.35, 512)}
FLOPS_PER_CYCLE = 4096  # of a core in one pass of its multiplier, 2 per multiply-add
PASSES = {"bf16": 4, "bfp8": 2}  # hifi4, hifi2
GAP_US = 5  # between calls of a trace: "single-digit microseconds" in the vendor's reports
PUBLISHED = {("pi0", "N300, one of its two chips"): (326,), ("pi0", "P150"): (140.6,),
             ("pi05", "P150"): (35.4, 55.7)}
VISION = {"width": 1152, "mlp": 4304, "depth": 27, "heads": 16, "head": 96}
VLM = {"width": 2048, "mlp": 16384, "depth": 18, "heads": 8, "head": 256}
EXPERT = {"width": 1024, "mlp": 4096, "depth": 18, "heads": 8, "head": 256}
CAMERAS, PATCHES, PROMPT, HORIZON, STEPS = 2, 256, 32, 50, 10


def up(n):
    return math.ceil(n / TILE) * TILE


class Calls:
    """FLOPs, passes of the multiplier and bytes of each call."""

    def __init__(self, precision):
        self.passes, self.weight = PASSES[precision], 2 if precision == "bf16" else 17 / 16
        self.all = []

    def product(self, rows, inputs, outputs):
        rows, inputs, outputs = up(rows), up(inputs), up(outputs)
        self.all.append((2 * rows * inputs * outputs,
                         inputs * outputs * self.weight + 2 * rows * (inputs + outputs)))

    def attention(self, rows, keys, heads, kv_heads, head):
        rows, keys = up(rows), up(keys)
        self.all.append((4 * heads * rows * keys * head,
                         2 * head * (2 * heads * rows + 2 * kv_heads * keys)))

    def move(self, rows, columns, tensors=2, times=1):
        self.all += [(0, 2 * tensors * up(rows) * up(columns))] * times

    def ms(self, cores, ghz, gbytes):
        peak = cores * ghz * 1e9 * FLOPS_PER_CYCLE / self.passes
        return 1e3 * sum(max(f / peak, b / (gbytes * 1e9)) + GAP_US * 1e-6 for f, b in self.all)


def vision(calls):
    rows, t = CAMERAS * PATCHES, VISION
    calls.product(rows, 588, t["width"])
    for _ in range(t["depth"]):
        width = t["heads"] * t["head"]
        calls.move(rows, t["width"], 2, 2)  # norms
        calls.product(rows, t["width"], 3 * width)
        calls.move(rows, 3 * width)
        calls.attention(CAMERAS * PATCHES, PATCHES, t["heads"], t["heads"], t["head"])
        calls.move(rows, width)
        calls.product(rows, width, t["width"])
        calls.product(rows, t["width"], t["mlp"])
        calls.product(rows, t["mlp"], t["width"])
        calls.move(rows, t["width"], 3, 2)  # residuals
    calls.product(rows, t["width"], VLM["width"])


def gemma(calls, t, rows, keys, modulated):
    width = t["heads"] * t["head"]
    calls.move(rows, t["width"], 2, 4 if modulated else 2)  # norms, shifts
    calls.product(rows, t["width"], width + 2 * t["head"])
    calls.move(rows, width + 2 * t["head"], 2, 3)  # heads, two rotations
    calls.move(keys, t["head"], 2, 2)  # the cache
    calls.attention(rows, keys, t["heads"], 1, t["head"])
    calls.move(rows, width)
    calls.product(rows, width, t["width"])
    calls.product(rows, t["width"], t["mlp"])
    calls.product(rows, t["width"], t["mlp"])
    calls.move(rows, t["mlp"], 3)
    calls.product(rows, t["mlp"], t["width"])
    calls.move(rows, t["width"], 3, 4 if modulated else 2)  # residuals, gates


def policy(kind, precision):
    calls, prefix = Calls(precision), CAMERAS * PATCHES + PROMPT
    vision(calls)
    for _ in range(VLM["depth"]):
        gemma(calls, VLM, prefix, prefix, False)
    for _ in range(STEPS):
        calls.product(HORIZON, 32, EXPERT["width"])
        for _ in range(2 if kind == "pi0" else 0):
            calls.product(HORIZON, EXPERT["width"], EXPERT["width"])
        for _ in range(EXPERT["depth"]):
            gemma(calls, EXPERT, HORIZON, prefix + HORIZON + 1, kind == "pi05")
        calls.product(HORIZON, EXPERT["width"], 32)
        calls.move(HORIZON, 32, 3, 2)
    return calls


def main():
    rows = []
    for kind, precision in (("pi0", "bf16"), ("pi0", "bfp8"), ("pi05", "bf16"), ("pi05", "bfp8")):
        calls = policy(kind, precision)
        for card, limits in CARDS.items():
            ms, published = calls.ms(*limits), PUBLISHED.get((kind, card), ())
            rows.append({"policy": kind, "precision": precision, "card": card,
                         "calls": len(calls.all), "predicted_ms": round(ms, 1),
                         "published_ms": published,
                         "published_over_predicted": [round(p / ms, 2) for p in published]})
    if "--json" in sys.argv:
        return print(json.dumps(rows))
    for r in rows:
        known = ", ".join(f"{p} ms published, {x} times that" for p, x in
                          zip(r["published_ms"], r["published_over_predicted"]))
        print(f"{r['policy']:5} {r['precision']:5} {r['card']:27} {r['calls']} calls: predicted "
              f"{r['predicted_ms']} ms; {known or 'nothing published'}")


if __name__ == "__main__":
    main()
