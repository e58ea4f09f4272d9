"""Runs tendon's own commands and writes what they say as pages. Started by scripts/reports."""
import datetime, json, pathlib, platform, re, subprocess, sys

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


def head(title, intro):
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                            text=True).stdout.strip()
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return [f"# {title}", "", f"Written by `scripts/reports` on {date}, commit {commit}, on "
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
            page += table(("module", "PCC", "gate", "max error", "relative L2", ""), [
                (m["module"], f"{m['pcc']:.6f}", m["gate"], f"{m['max_error']:.2e}",
                 f"{m['relative_l2']:.2e}", "ok" if m["passed"] else "**FAILED**")
                for m in result["modules"]])
    return page


def coverage_rows(parts, total):
    for name, p in list(parts.items()) + [("all", total)]:
        yield (name, p["calls"], p["device"], p["host"], f"{100 * p['device_share']:.1f} %",
               f"{100 * p['flops_share']:.2f} %", f"{p['bytes'] / 1e6:.2f}", p["uploads"],
               p["downloads"])


def coverage(tendon):
    page = head("Coverage", "Executed calls of one inference in the steady state, with the three "
                "cameras of the embedded observation.")
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


def main():
    tendon, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("accuracy", accuracy(tendon)), ("coverage", coverage(tendon)),
                        ("benchmarks", benchmarks(tendon, "--full-size" in sys.argv))):
        (folder / f"{name}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
