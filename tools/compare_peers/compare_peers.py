"""Times lerobot's PyTorch implementation and tendon in turns; README.md says what is compared."""

import argparse
import importlib.metadata
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GOLDEN_FOLDER = {"full": "full-{}", "tiny": "tiny-{}-h50"}
PROMPT_TOKENS = 48


def run_json(command):
    """The JSON object that a program prints last; it has exited, so its memory is free again."""
    finished = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if finished.returncode:
        sys.exit(f"exit code {finished.returncode} of {' '.join(map(str, command))}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def tendon_block(options, sizes, case, precision):
    result = run_json(
        [options.tendon, "bench", f"synthetic:{options.policy}", "--config", sizes, "--json"]
        + ["--precision", precision, "--threads", options.threads, "--steps", options.steps]
        + ["--warm-up", 1, "--calls", options.calls, "--prompt-tokens", case["max_token_len"]]
        + (["--no-state-in-prompt"] if options.policy == "pi05" else [])
    )
    patches = (case["vision"]["image"] // case["vision"]["patch"]) ** 2
    prefix = case["cameras"] * patches + case["max_token_len"]
    if result["prefix_tokens"] != prefix:
        sys.exit(f"tendon ran {result['prefix_tokens']} prefix tokens, expected {prefix}")
    ms = {name: stage["p50_ms"] for name, stage in result["stages"].items()}
    return result | {"median_s": (ms["total"] - ms["preprocess"] - ms["postprocess"]) / 1e3}


def lerobot(options, what, precision, calls):
    # tendon asks for huge pages by itself; PyTorch's allocator does when this variable is set.
    huge = ["env", "THP_MEM_ALLOC_ENABLE=1"] if options.huge_pages else []
    program = [sys.executable, HERE / "lerobot_block.py"]
    return run_json(huge + program + [what, precision, options.threads, calls])


def lerobot_block(options, case, precision):
    result = lerobot(options, json.dumps(case), precision, options.calls)
    return result | {"median_s": statistics.median(result["seconds"])}


def measure(options):
    """Blocks in the order in which they ran: {precision: [(tendon, lerobot), ...]}."""
    folder = GOLDEN_FOLDER[options.size].format(options.policy)
    sizes = ROOT / "tests/data/golden" / folder / "config.json"
    case = json.loads(sizes.read_text())
    case["max_token_len"] = min(PROMPT_TOKENS, case["max_token_len"])
    case["num_steps"] = options.steps
    rounds = {precision: [] for precision in options.precision}
    for i in range(options.rounds):
        for precision in options.precision:
            ours = tendon_block(options, sizes, case, precision)
            theirs = lerobot_block(options, case, precision)
            rounds[precision].append((ours, theirs))
            print(
                f"round {i + 1} {precision}: tendon {ours['median_s']:.4g} s, lerobot"
                f" {theirs['median_s']:.4g} s, ratio {theirs['median_s'] / ours['median_s']:.3g}",
                file=sys.stderr,
            )
    return rounds


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def machine(options):
    versions = {name: importlib.metadata.version(name) for name in ("lerobot", "torch")}
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    huge = " with huge pages" if options.huge_pages else ""
    return f"{cpu_name()}, {options.threads} threads, {names}{huge}"


def spread(values):
    return f"{statistics.median(values):.4g} ({min(values):.4g}..{max(values):.4g})"


def table(options, rounds):
    ours = [pair[0] for pairs in rounds.values() for pair in pairs]
    peaks = []
    for precision, pairs in rounds.items():
        best = max((pair[0] for pair in pairs), key=lambda block: block["peak_gflops"])
        peaks.append(f"{precision} {best['peak_gflops']:.0f} GFLOP/s ({best['method']})")
    lines = [
        f"{machine(options)}, tendon {ours[0]['version']}; peak measured by tendon: "
        + ", ".join(peaks),
        "",
        f"{options.policy}, {options.size} size, {options.steps} steps, {options.rounds} blocks of"
        f" {options.calls} calls",
        "",
        "| engine | precision | seconds per call | ratio to tendon | memory GB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for precision, pairs in rounds.items():
        seconds = [[pair[engine]["median_s"] for pair in pairs] for engine in (0, 1)]
        memory = [max(pair[engine]["peak_memory_gb"] for pair in pairs) for engine in (0, 1)]
        medians = [statistics.median(s) for s in seconds]
        ratios = [theirs / mine for mine, theirs in zip(*seconds)]
        ratio = f"{medians[1] / medians[0]:.3g} ({min(ratios):.3g}..{max(ratios):.3g})"
        lines.append(f"| tendon | {precision} | {spread(seconds[0])} | 1 | {memory[0]:.1f} |")
        lines.append(
            f"| lerobot, PyTorch | {precision} | {spread(seconds[1])} | {ratio} | {memory[1]:.1f} |"
        )
    return "\n".join(lines)


def products_table(options, products):
    lines = [
        f"{machine(options)}; torch.nn.functional.linear, GFLOP/s",
        "",
        "| rows | K, N | " + " | ".join(products) + " |",
        "| --- " * (2 + len(products)) + "|",
    ]
    for same_shape in zip(*products.values()):
        rows, columns, outputs = same_shape[0][:3]
        speeds = " | ".join(f"{product[3]:.1f}" for product in same_shape)
        lines.append(f"| {rows} | {columns}, {outputs} | {speeds} |")
    return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tendon", type=pathlib.Path, default=ROOT / "build/release/tendon")
    parser.add_argument("--policy", choices=("pi0", "pi05"), default="pi0")
    parser.add_argument("--precision", nargs="+", choices=("bf16", "f32"), default=["bf16", "f32"])
    parser.add_argument("--size", choices=tuple(GOLDEN_FOLDER), default="full")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of each engine")
    parser.add_argument("--calls", type=int, default=2, help="measured calls in a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="Euler steps")
    parser.add_argument("--huge-pages", action="store_true", help="for PyTorch too")
    parser.add_argument("--products", action="store_true", help="PyTorch's single products only")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything measured there")
    options = parser.parse_args()
    if min(options.rounds, options.calls, options.threads, options.steps) < 1:
        parser.error("--rounds, --calls, --threads and --steps: at least 1")
    if not options.tendon.is_file():
        parser.error(f"{options.tendon}: no such file; build tendon or name it with --tendon")
    return options


def main():
    options = parse()
    if options.products:
        measured = {
            precision: lerobot(options, "products", precision, 10)["products"]
            for precision in options.precision
        }
        print(products_table(options, measured))
    else:
        measured = measure(options)
        print(table(options, measured))
    if options.json:
        result = {"machine": machine(options), "settings": vars(options), "measured": measured}
        options.json.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
