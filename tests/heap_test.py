#!/usr/bin/env python3
"""The heap of a server under load, as massif draws it: after the first fifth of ten thousand
requests over a hundred connections it does not grow any more.

    heap_test.py SERVER_TEST
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

SOAK = "Server.gives_equal_bytes_for_equal_input_ten_thousand_times_without_growing"
GROWTH_BYTES_MAX = 64 << 10  # of blocks that live; a connection in flight has about twenty


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
    # The last twentieth takes the server down.
    early = [heap for time, heap in taken if 0.10 * end < time <= 0.20 * end]
    late = [heap for time, heap in taken if 0.20 * end < time <= 0.95 * end]
    print(f"row 25: {len(taken)} snapshots of massif; heap {min(late) / 1024:.0f} to "
          f"{max(late) / 1024:.0f} KiB after the first fifth, up to {max(early) / 1024:.0f} within")
    if len(early) < 3 or len(late) < 10:
        sys.exit("too few snapshots to judge")
    if max(late) > max(early) + GROWTH_BYTES_MAX:
        sys.exit(f"the heap grew by {max(late) - max(early)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
