"""Runs tendon's own commands and writes what they say as pages. Started by scripts/reports."""
import argparse, datetime, functools, json, pathlib, platform, re, subprocess, sys, tempfile

MODELS = ("synthetic:pi0-small", "synthetic:pi05-small")
BACKENDS = (("cpu", "f32", []), ("cpu", "bf16", []), ("cpu", "int8", []),
            ("ttnn", "bf16", ["--device", "fake"]), ("ttnn", "bfp8", ["--device", "fake"]))


def run(command):
    print("+", " ".join(map(str, command)), file=sys.stderr)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if not done.stdout:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def machine():
    names = re.findall(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return f"{len(names)} x {names[0]}, {platform.system()}"


@functools.cache
def commit():
    """As it is before the first page is written, which would make it dirty."""
    return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                          text=True).stdout.strip()


def head(title, intro):
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return [f"# {title}", "", f"Written by `scripts/reports` on {date}, commit {commit()}, on "
            f"{machine()}. {intro}", ""]


def table(columns, rows):
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows] + [""]


def accuracy(tendon):
    page = head("Accuracy", "Every module got the reference's input; `actions` ran end to end.")
    for model in MODELS:
        for backend, precision, device in BACKENDS:
            arguments = ["validate", model, "--backend", backend, "--precision", precision, *device]
            result = run([tendon, *arguments, "--json"])
            page += [f"## {model}: {backend}, {precision}", "",
                     f"`tendon {' '.join(arguments)}` — {result['method']}", ""]
            columns = ("module", "PCC", "at least", "relative L2", "at most", "max error", "")
            page += table(columns, [
                (m["module"], f"{m['pcc']:.10f}", f"{m['gate']:.10f}", f"{m['relative_l2']:.2e}",
                 f"{m['relative_l2_gate']:.2g}", f"{m['max_error']:.2e}",
                 "ok" if m["passed"] else f"**FAILED: {m['failed']}**")
                for m in result["modules"]])
    return page


# One vision layer, two of each tower, one Euler step: minutes on the simulator.
TOY = {"num_steps": 1, "cameras": 1, "horizon": 8, "max_token_len": 16,
       "vision": {"image": 56, "width": 48, "heads": 2, "mlp": 56, "depth": 1},
       "vlm": {"width": 64, "mlp": 56, "heads": 2, "head_dim": 16, "depth": 2},
       "expert": {"width": 32, "mlp": 56, "heads": 2, "head_dim": 16, "depth": 2}}
OPTIONS = (["--precision", "bf16"],
           ["--precision", "bf16,expert=bfp8", "--fidelity", "hifi2", "--memory", "l1",
            "--on-device", "patches,times"])


def simulator(tendon, folder):
    """Every module on the TTNN library, beside the model of the device."""
    page = head("The TTNN library, module by module", "The library with its own kernels on a "
                "simulated Wormhole, and beside it tendon's model of the device: each module "
                "against the reference, with the reference's input; `end_to_end` with its own. "
                "Toy sizes, `TOY` in `tools/reports.py`.")
    with tempfile.TemporaryDirectory() as scratch:
        sizes = pathlib.Path(scratch) / "toy.json"
        sizes.write_text(json.dumps(TOY))
        for model, options in ((m, o) for m in MODELS for o in OPTIONS):
            validate = ["validate", model, "--config", sizes, "--backend", "ttnn", *options]
            library = run([tendon, *validate, "--ttnn-sim", folder, "--json"])
            fake = run([tendon, *validate, "--device", "fake", "--json"])
            page += [f"## {model}: {' '.join(options)}", "",
                     f"`tendon validate {model} --config TOY --backend ttnn {' '.join(options)} "
                     f"--ttnn-sim DIR` — {library['method']}", ""]
            rows = zip(library["modules"], fake["modules"], strict=True)
            page += table(("module", "PCC", "asked", "at least", "relative L2", "at most",
                           "relative L2 of the model of the device", ""), [
                (m["module"], f"{m['pcc']:.7f}", "–" if m["asked"] is None else m["asked"],
                 f"{m['gate']:.7f}", f"{m['relative_l2']:.2e}", f"{m['relative_l2_gate']:.2g}",
                 f"{f['relative_l2']:.2e}",
                 "ok" if m["passed"] else f"**FAILED: {m['failed']}**") for m, f in rows])
    return page


def share(value, digits):
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def coverage_rows(parts, total):
    for name, p in list(parts.items()) + [("all", total)]:
        yield (name, p["calls"], p["device"], p["host"], share(p["device_share"], 1),
               share(p["flops_share"], 2), f"{p['bytes'] / 1e6:.2f}", p["uploads"],
               p["downloads"])


def components(tendon):
    """Which implementation each component has on each backend, and which one is the default."""
    default = run([tendon, "coverage", "demo", "--json"])["backend"]
    runs = {name: run([tendon, "coverage", "demo", "--backend", name, *more, "--json"])
            for name, more in (("reference", []), ("cpu", []), ("ttnn", ["--device", "fake"]))}

    def cell(result, module):
        sums = result["by_module"][module]
        ops = {c["op"] for c in result["calls"] if c["module"] == module}
        kinds = f"{len(ops)} op{'s' * (len(ops) > 1)}"
        return f"{sums['device']} of {sums['calls']}, {kinds}" if sums["calls"] else "–"

    columns = ("component", *(n + (" (default)" if n == default else "") for n in runs))
    page = ["## Components", "", "Calls of one inference of `demo` that the backend's own "
            "implementation ran, and how many different ones; – where the steady state has no call "
            "left. Ops are tendon's for reference and cpu, the TTNN library's for ttnn.", ""]
    page += table(columns, [(m, *(cell(r, m) for r in runs.values()))
                            for m in runs[default]["by_module"]])
    return page + [f"* {name}: {result['method'] or 'plain float loops'}"
                   for name, result in runs.items()] + [""]


def made_on_device(tendon):
    """What it costs that the device makes what the host makes by default."""
    page = ["## Made on the host, or on the device", "", "`tendon coverage demo --backend ttnn "
            "--device fake`, two pictures of the model's size, with and without `--on-device`.", ""]
    rows = []
    for what in ("", "patches", "times"):
        total = run([tendon, "coverage", "demo", "--backend", "ttnn", "--device", "fake",
                     *(["--on-device", what] if what else []), "--json"])["total"]
        rows.append((what or "nothing, the default", total["calls"], total["uploads"],
                     total["bytes_up"]))
    return page + table(("on the device", "calls", "uploads", "bytes up"), rows)


def coverage(tendon):
    page = head("Coverage", "Executed calls of one inference in the steady state, with the three "
                "cameras of the embedded observation.")
    page += components(tendon) + made_on_device(tendon)
    columns = ("", "calls", "device", "host", "on device", "of FLOPs", "MB", "up", "down")
    runs = [(m, b, d) for m in MODELS for b, d in (
        ("cpu", []), ("ttnn", ["--device", "fake"]),
        ("ttnn", ["--device", "fake", "--host-modules", "suffix,prefix"]))]
    for model, backend, more in runs:
        arguments = ["coverage", model, "--backend", backend, *more]
        r = run([tendon, *arguments, "--json"])
        page += [f"## {model}: {' '.join([backend, *more])}", "",
                 f"`tendon {' '.join(arguments)}` — {r['method']}", ""]
        page += table(("class", *columns[1:]), coverage_rows(r["by_class"], r["total"]))
        page += table(("module", *columns[1:]), coverage_rows(r["by_module"], r["total"]))
        page += [f"Transfers between denoising steps: {r['transfers_between_steps']}. FLOPs on the "
                 f"device: {100 * r['total']['flops_on_device_share']:.3f} %.", ""]
    return page


def benchmarks(tendon, full_size):
    page = head("Benchmarks", "Medians. Machines are shared: compare fractions, not milliseconds.")
    columns = ("model", "precision", "forward ms", "denoise ms", "total ms", "utilisation",
               "times the reference", "images/s", "tokens/s", "ms/image", "ms/token")
    runs = [(m, p, ["--reference"]) for m in MODELS for p in ("f32", "bf16", "int8")]
    if full_size:
        runs += [(m, p, ["--calls", "2"]) for m in ("synthetic:pi0", "synthetic:pi05")
                 for p in ("bf16", "int8")]
    rows = []
    for model, precision, more in runs:
        r = run([tendon, "bench", model, "--precision", precision, *more, "--json"])
        c = r["columns"]
        speed_up = c.get("speed_up_over_reference")
        rows.append((model, f"{precision} ({r['method']})", f"{c['forward_ms']:.2f}",
                     f"{c['denoise_ms']:.2f}", f"{c['total_ms']:.2f}",
                     f"{100 * c['utilisation']:.1f} %",
                     f"{speed_up:.1f}" if speed_up else "",
                     f"{c['images_per_s']:.1f}", f"{c['tokens_per_s']:.0f}",
                     f"{c['ms_per_image']:.2f}", f"{c['ms_per_token']:.3f}"))
    page += ["`tendon bench MODEL --precision P --reference`", ""]
    return page + table(columns, rows) + [
        "The ttnn backend has no row: it ran on simulated devices only, whose times say nothing "
        "about a chip.", ""]


DEMOS = ("demo:pi0", "demo:pi05")
SEED = 100000  # of the tests' first episode


def judged(tendon, model, count, verb, pairs, *more):
    command = [tendon, "demo", model, "--episodes", count, "--seed", SEED, "--verb", verb,
               "--pairs", pairs, "--threads", "1", "--json", *more]
    return run(command)


def percent(result):
    low, high = (100 * v for v in result["interval"])
    return f"{100 * result['success_rate']:.1f} % ({low:.0f} to {high:.0f})"


def demo(tendon):
    page = head("The demo, judged", "Episodes solved, with Wilson's 95 % interval: "
                f"`tendon demo MODEL --episodes N --seed {SEED} --verb V --pairs P` and the "
                "options of the row. 200 episodes per number, 60 on the fake device, 100 in the "
                "lower two tables.")
    kinds = [(v, p) for p in ("seen", "unseen") for v in ("reach", "push")]
    rows = []
    for model in DEMOS:
        for backend, precision, device in BACKENDS:
            count = 60 if device else 200
            more = ["--backend", backend, "--precision", precision, *device]
            rows.append([model, f"{backend} {precision}", *(
                percent(judged(tendon, model, count, v, p, *more)) for v, p in kinds)])
    page += table(("policy", "backend", "reach", "push", "reach, unseen pairs",
                   "push, unseen pairs"), rows)
    page += ["What the policies use: cpu f32, seen pairs.", ""]
    ways = ((), ("--wrong-prompt",), ("--blank-images",), ("--zero-state",))
    page += table(("policy", "task", "as it is", *(f"`{w[0]}`" for w in ways[1:])), [
        (m, v, *(percent(judged(tendon, m, 100, v, "seen", "--precision", "f32", *w))
                 for w in ways)) for m in DEMOS for v in ("reach", "push")])
    page += ["Pushing under latency, without and with real-time chunking (`--rtc`). Smoothness is "
             "the mean over episodes of the largest difference between the running chunk's next "
             "action and the new chunk's first, in table sides per second.", ""]
    rows = []
    for model in DEMOS:
        for latency in (0, 50, 200):
            more = ("--precision", "f32", "--latency", latency)
            pair = [judged(tendon, model, 100, "push", "seen", *more, *rtc)
                    for rtc in ((), ("--rtc",))]
            rows.append((model, f"{latency} ms", *(
                [percent(r) for r in pair]
                + [f"{r['tasks']['push']['mean_max_step']:.3f}" for r in pair])))
    return page + table(("policy", "latency", "solved", "solved, rtc", "largest step",
                         "largest step, rtc"), rows)


def main():
    parser = argparse.ArgumentParser(prog="scripts/reports", description=__doc__)
    parser.add_argument("tendon")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--sim", metavar="DIR")
    parser.add_argument("--only", action="append", metavar="PAGE")
    o = parser.parse_args()
    pages = {"accuracy": accuracy, "coverage": coverage, "demo": demo,
             "benchmarks": lambda tendon: benchmarks(tendon, o.full_size)}
    if o.sim:
        pages["simulator"] = lambda tendon: simulator(tendon, o.sim)
    if unknown := set(o.only or []) - set(pages):
        parser.error(f"no page {', '.join(unknown)}; there are: {', '.join(pages)}")
    o.folder.mkdir(parents=True, exist_ok=True)
    for name in o.only or pages:
        (o.folder / f"{name}.md").write_text("\n".join(pages[name](o.tendon)))


if __name__ == "__main__":
    main()
