"""Times lerobot in PyTorch, OpenVINO and ONNX Runtime and tendon in turns; see README.md."""

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
PRECISIONS = {
    "tendon": ("f32", "bf16", "int8"),
    "eager": ("f32", "bf16"),
    "compile": ("f32", "bf16"),
    "openvino": ("f32", "bf16", "f16", "int8"),
    "onnx": ("f32", "int8"),
}
INT8 = ("dq32", "dq128", "static")  # of OpenVINO
RANK = {"f32": 0, "bf16": 1, "f16": 1, "int8": 2}
ONCE = {"export_seconds": "export", "load_seconds": "load", "compile_seconds": "compile"}
CLASSES = ("f32", "16 bit", "int8")
LABELS = {
    "eager": "lerobot, PyTorch",
    "compile": "lerobot, torch.compile",
    "openvino": "OpenVINO",
    "onnx": "ONNX Runtime",
}


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


def huge_pages(options):
    # tendon asks for huge pages by itself; PyTorch's allocator and glibc's do with these variables.
    names = ["THP_MEM_ALLOC_ENABLE=1", "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"]
    return ["env", *names] if options.huge_pages else []


def lerobot(options, what, precision, calls, *mode):
    program = [sys.executable, HERE / "lerobot_block.py", what, precision]
    return run_json(huge_pages(options) + program + [options.threads, calls, *mode])


def exported(options, engine, case, precision):
    folder = options.exported_models / f"{options.policy}-{options.size}"
    program = [sys.executable, HERE / f"{engine}_block.py", json.dumps(case), precision]
    return run_json(huge_pages(options) + program + [options.threads, options.calls, folder])


def case_of(options):
    """The file with the sizes, and its contents with this comparison's prompt and steps."""
    folder = GOLDEN_FOLDER[options.size].format(options.policy)
    sizes = ROOT / "tests/data/golden" / folder / "config.json"
    case = json.loads(sizes.read_text())
    case["max_token_len"] = min(PROMPT_TOKENS, case["max_token_len"])
    case["num_steps"] = options.steps
    case["reference"] = options.reference
    return sizes, case


def run_block(options, engine, precision, variant):
    sizes, case = case_of(options)
    if engine == "tendon":
        return tendon_block(options, sizes, case, precision)
    if engine in ("openvino", "onnx"):
        result = exported(options, engine, case, variant)
    else:
        mode = ["compile"] if engine == "compile" else []
        result = lerobot(options, json.dumps(case), precision, options.calls, *mode)
    return result | {"median_s": statistics.median(result["seconds"])}


def plan(options):
    """(engine, precision, variant) in the order in which a round runs them."""
    blocks = []
    for precision in options.precision:
        for engine in options.engines:
            if engine == "openvino" and precision == "int8":
                blocks += [(engine, precision, f"int8-{variant}") for variant in options.int8]
            elif precision in PRECISIONS[engine]:
                blocks.append((engine, precision, precision))
    return blocks


def name_of(engine, precision, variant):
    return engine if variant == precision else f"ov-{variant}"


def write_json(options, measured):
    if options.json:
        result = {"machine": machine(options), "settings": vars(options), "measured": measured}
        options.json.write_text(json.dumps(result, indent=1, default=str) + "\n")


def measure(options):
    """Blocks in the order in which they ran, each with its round, engine and precision."""
    measured = []
    for i in range(options.rounds):
        for engine, precision, variant in plan(options):
            name = name_of(engine, precision, variant)
            block = run_block(options, engine, precision, variant)
            measured.append({"round": i, "engine": name, "precision": precision} | block)
            print(f"round {i + 1} {precision}: {name} {block['median_s']:.4g} s", file=sys.stderr)
            write_json(options, measured)
    return measured


def cpu_name():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


def machine(options):
    packages = ["lerobot", "torch"]
    packages += ["openvino", "nncf"] if "openvino" in options.engines else []
    packages += ["onnxruntime"] if "onnx" in options.engines else []
    versions = {name: importlib.metadata.version(name) for name in packages}
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    huge = " with huge pages" if options.huge_pages else ""
    return f"{cpu_name()}, {options.threads} threads, {names}{huge}"


def spread(values):
    return f"{statistics.median(values):.4g} ({min(values):.4g}..{max(values):.4g})"


def rows_of(measured):
    """{(engine, precision): its blocks by round}."""
    rows = {}
    for block in measured:
        rows.setdefault((block["engine"], block["precision"]), []).append(block)
    return rows


def seconds_of(blocks):
    return [block["median_s"] for block in blocks]


def ratio_text(blocks, ours):
    """Medians of these blocks by tendon's, and the least and greatest ratio in a round."""
    if ours is None:
        return "-"
    theirs, mine = seconds_of(blocks), seconds_of(ours)
    if blocks is ours:
        return "1"
    ratios = [a / b for a, b in zip(theirs, mine)]
    middle = statistics.median(theirs) / statistics.median(mine)
    return f"{middle:.3g} ({min(ratios):.3g}..{max(ratios):.3g})"


def once(blocks):
    """Seconds before the first measured call, and the error against eager PyTorch."""
    last = blocks[-1]
    texts = [
        f"{what} {max(block[key] for block in blocks):.1f} s"
        for key, what in ONCE.items()
        if key in last
    ]
    error = f"{last['relative_l2']:.1e}" if "relative_l2" in last else ""
    return f"{', '.join(texts)} | {error}"


def best_peers(rows):
    """For each class of precision, tendon against the fastest peer of that class or a finer one."""
    medians = {row: statistics.median(seconds_of(blocks)) for row, blocks in rows.items()}
    lines = []
    for rank, name in enumerate(CLASSES):
        ours = [row for row in rows if row[0] == "tendon" and RANK[row[1]] == rank]
        peers = [row for row in rows if row[0] != "tendon" and RANK[row[1]] <= rank]
        if ours and peers:
            best = min(peers, key=medians.get)
            lines.append(
                f"{name}: tendon {medians[ours[0]]:.4g} s, best peer {best[0]} {best[1]}"
                f" {medians[best]:.4g} s, ratio {ratio_text(rows[best], rows[ours[0]])}"
            )
    return lines


def heading(options, rows):
    peaks, version = [], ""
    for (engine, precision), blocks in rows.items():
        if engine == "tendon":
            best = max(blocks, key=lambda block: block["peak_gflops"])
            peaks.append(f"{precision} {best['peak_gflops']:.0f} GFLOP/s ({best['method']})")
            version = f", tendon {best['version']}; peak measured by tendon: "
    return [
        machine(options) + version + ", ".join(peaks),
        "",
        f"{options.policy}, {options.size} size, {options.steps} steps, {options.rounds} blocks of"
        f" {options.calls} calls",
        "",
    ]


def table(options, measured):
    rows = rows_of(measured)
    lines = heading(options, rows) + [
        "| engine | precision | seconds per call | ratio to tendon | memory GB | once"
        " | relative L2 to eager |",
        "| --- " * 7 + "|",
    ]
    by_class = {RANK[p]: blocks for (engine, p), blocks in rows.items() if engine == "tendon"}
    for (engine, precision), blocks in rows.items():
        seconds = spread(seconds_of(blocks))
        ratio = ratio_text(blocks, by_class.get(RANK[precision]))
        memory = max(block["peak_memory_gb"] for block in blocks)
        name = LABELS.get(engine, engine)
        lines.append(
            f"| {name} | {precision} | {seconds} | {ratio} | {memory:.1f} | {once(blocks)} |"
        )
    return "\n".join(lines + [""] + best_peers(rows))


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
    add = parser.add_argument
    add("--tendon", type=pathlib.Path, default=ROOT / "build/release/tendon")
    add("--policy", choices=("pi0", "pi05"), default="pi0")
    add("--engines", nargs="+", choices=tuple(PRECISIONS), default=["tendon", "eager"])
    add("--precision", nargs="+", choices=tuple(RANK), default=["bf16", "f32"])
    add("--int8", nargs="+", choices=INT8, default=INT8, help="OpenVINO's engines in int8")
    add("--exported-models", type=pathlib.Path, default=ROOT / "build/peers-ir", help="folder")
    add("--reference", action="store_true", help="OpenVINO's error against PyTorch at full size")
    add("--size", choices=tuple(GOLDEN_FOLDER), default="full")
    add("--rounds", type=int, default=3, help="blocks of each engine")
    add("--calls", type=int, default=2, help="measured calls in a block")
    add("--threads", type=int, default=2)
    add("--steps", type=int, default=10, help="Euler steps")
    add("--huge-pages", action="store_true", help="for the peers too")
    add("--products", action="store_true", help="PyTorch's single products only")
    add("--json", type=pathlib.Path, help="also write everything measured there")
    options = parser.parse_args()
    if min(options.rounds, options.calls, options.threads, options.steps) < 1:
        parser.error("--rounds, --calls, --threads and --steps: at least 1")
    if options.products and not set(options.precision) <= set(PRECISIONS["eager"]):
        parser.error("--products: only --precision " + ", ".join(PRECISIONS["eager"]))
    if not plan(options):
        parser.error("none of --engines has any of --precision")
    if "tendon" in options.engines and not options.tendon.is_file():
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
    write_json(options, measured)


if __name__ == "__main__":
    main()
