#!/usr/bin/env python3
"""Lets the fuzz targets explore, several at a time, and prints what each one executed, covered and
found. Exit code 1 when there are finds: inputs that crash, leak, need more than 512 MiB or more
than a second of a processor.

    fuzz/explore.py --build build/dev --seconds 60 [--jobs 2] [--keep] [TARGET...]

What a target learns stays in BUILD/fuzz/learned/TARGET; --keep puts the smallest set of inputs with
the same coverage into fuzz/corpus/TARGET.tar.xz. Finds go to BUILD/fuzz/found/: mend the code, then
move them to fuzz/finds/TARGET/ with a name that says what they prove.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CPU_SECONDS_MAX = 1
MEMORY_MIB_MAX = 512
# Bytes of the longest input: what reaches every branch, not what the parser takes.
LENGTH_MAX = {"adapter": 4 << 10, "checkpoint_folder": 12 << 10, "configuration": 4 << 10,
              "converted_file": 12 << 10, "http": 6 << 10, "image": 4 << 10, "msgpack": 4 << 10,
              "recording": 2 << 10, "safetensors": 6 << 10, "sentencepiece": 12 << 10,
              "tokenizer_json": 16 << 10, "torch_file": 2 << 10, "websocket": 20 << 10}
KEPT_BYTES_MAX = 400_000  # of one target's corpus before it is packed, the shortest inputs first


def inputs(build, target):
    folders = [build / "fuzz/corpus" / target, HERE / "finds" / target]
    return [str(folder) for folder in folders if folder.is_dir()]


def command(build, target, *more):
    dictionary = HERE / "dictionaries" / (target + ".dict")
    return [str(build / "fuzz" / ("fuzz_" + target)), f"-max_len={LENGTH_MAX[target]}",
            f"-rss_limit_mb={MEMORY_MIB_MAX}", "-timeout=20",
            "-entropic=0",  # half of the time of targets with many edges
            *([f"-dict={dictionary}"] if dictionary.is_file() else []), *more]


def cpu_seconds(arguments):
    """Of this child alone, whatever the machine and other children do."""
    child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


def explore(build, target, seconds):
    learned, found = build / "fuzz/learned" / target, build / "fuzz/found"
    learned.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    run = subprocess.run(
        command(build, target, f"-max_total_time={seconds}", "-print_final_stats=1",
                f"-report_slow_units={CPU_SECONDS_MAX}", f"-artifact_prefix={found}/{target}-",
                str(learned), *inputs(build, target)),
        capture_output=True, text=True, errors="replace")
    log = build / "fuzz/found" / f"{target}.log"
    log.write_text(run.stderr)
    last = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", run.stderr)
    executed = re.search(r"number_of_executed_units:\s*(\d+)", run.stderr)
    return {"target": target, "executed": int(executed.group(1)) if executed else 0,
            "edges": int(last[-1][0]) if last else 0, "inputs": int(last[-1][2]) if last else 0,
            "failed": run.returncode != 0}


def judge_slow(build, target):
    """A slow input is one that takes a processor that long, not one that waited for it."""
    for path in (build / "fuzz/found").glob(f"{target}-slow-unit-*"):
        if cpu_seconds(command(build, target, str(path))) < CPU_SECONDS_MAX:
            path.unlink()


def keep(build, target):
    """The smallest corpus with the same coverage, packed."""
    with tempfile.TemporaryDirectory() as folder:
        merged = pathlib.Path(folder) / target
        merged.mkdir()
        subprocess.run(command(build, target, "-merge=1", str(merged),
                               *inputs(build, target)[:1], str(build / "fuzz/learned" / target)),
                       capture_output=True, check=True)
        left = KEPT_BYTES_MAX
        for path in sorted(merged.iterdir(), key=lambda p: (p.stat().st_size, p.name)):
            left -= path.stat().st_size
            if left < 0:
                path.unlink()
        pack(sorted(merged.iterdir()), HERE / "corpus" / f"{target}.tar.xz", target)
        shutil.rmtree(build / "fuzz/corpus" / target, ignore_errors=True)
        shutil.copytree(merged, build / "fuzz/corpus" / target)


def pack(paths, archive, folder):
    def plain(entry):  # the same bytes whoever packs, whenever
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o644
        return entry

    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:xz", preset=9) as out:
        for path in paths:
            out.add(path, arcname=f"{folder}/{path.name}", filter=plain)


def main():
    ask = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("targets", nargs="*", metavar="TARGET", help="all when none is named")
    ask.add_argument("--build", type=pathlib.Path, required=True)
    ask.add_argument("--seconds", type=int, default=60, help="per target")
    ask.add_argument("--jobs", type=int, default=os.cpu_count())
    ask.add_argument("--keep", action="store_true", help="renew fuzz/corpus")
    given = ask.parse_args()
    for name in set(given.targets) - set(LENGTH_MAX):
        ask.error(f"no target '{name}'; there are {', '.join(sorted(LENGTH_MAX))}")
    build, targets = given.build.resolve(), given.targets or sorted(LENGTH_MAX)
    for target in targets:
        if not (build / "fuzz" / f"fuzz_{target}").is_file():
            ask.error(f"{build}/fuzz/fuzz_{target} is missing; build the preset dev first")

    print(f"{'target':18}{'executions':>12}{'per second':>12}{'edges':>8}{'inputs':>8}  finds")
    finds = executed = 0
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        runs = [pool.submit(explore, build, target, given.seconds) for target in targets]
        for run in runs:
            row = run.result()
            executed += row["executed"]
            target = row["target"]
            judge_slow(build, target)
            names = sorted(p.name for p in (build / "fuzz/found").glob(f"{target}-*"))
            finds += max(len(names), 1 if row["failed"] else 0)
            told = ", ".join(names) or (f"failed, see fuzz/found/{target}.log" if row["failed"]
                                        else "none")
            print(f"{target:18}{row['executed']:12}{row['executed'] // max(given.seconds, 1):12}"
                  f"{row['edges']:8}{row['inputs']:8}  {told}", flush=True)
            if given.keep:
                keep(build, target)
    print(f"{len(targets)} targets, {given.seconds} s each, {executed:,} executions, {finds} finds"
          + (f" in {build}/fuzz/found" if finds else ""))
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
