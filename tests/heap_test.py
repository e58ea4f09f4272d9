#!/usr/bin/env python3
"""The heap of a server under load, as massif draws it: during ten thousand requests over a hundred
connections it ends as it was after the first fifth.

    heap_test.py SERVER_TEST
"""
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

SOAK = "Server.gives_equal_bytes_for_equal_input_ten_thousand_times_without_growing"
GROWTH_BYTES_MAX = 48 << 10  # eight bytes per request would be more


def snapshots(path):
    """(instructions, bytes of the heap) in the order of time."""
    text = path.read_text()
    return [(int(time), int(heap)) for time, heap in
            re.findall(r"^time=(\d+)\nmem_heap_B=(\d+)$", text, re.M)]


def main(server_test):
    if not shutil.which("valgrind"):
        print("skipped: valgrind is missing; apt-get install valgrind")
        return 77
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "massif.out"
        subprocess.run(["valgrind", "--tool=massif", "--detailed-freq=1000000",
                        "--max-snapshots=200", f"--massif-out-file={out}", server_test,
                        f"--gtest_filter={SOAK}"], check=True)
        taken = snapshots(out)
    end = taken[-1][0]
    # Connections come and go, about 50 KiB each: medians. The last twentieth takes the server down.
    early = [heap for time, heap in taken if 0.10 * end < time <= 0.30 * end]
    late = [heap for time, heap in taken if 0.75 * end < time <= 0.95 * end]
    if min(len(early), len(late)) < 5:
        sys.exit("too few snapshots to judge")
    before, after = statistics.median(early), statistics.median(late)
    print(f"row 25: {len(taken)} snapshots of massif; heap of {before / 1024:.0f} KiB early, "
          f"{after / 1024:.0f} late (medians), at most {max(h for _, h in taken) / 1024:.0f}")
    if after > before + GROWTH_BYTES_MAX:
        sys.exit(f"the heap grew by {after - before} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
