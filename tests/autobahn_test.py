#!/usr/bin/env python3
"""autobahn_test.py ECHO_SERVER VENV: the 301 cases of the Autobahn suite without compression.

Installs the suite's runner into VENV first, once. Exit code 77, "skipped: reason", where it cannot
be had; 1 when a case fails.
"""
import collections
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from environment import Checks, environment, skip

PACKAGE = "kosoku==0.1.0"
CASES = 301
COMPRESSION = ("12.*", "13.*")  # which the server never agrees to
PASSED = ("OK", "NON-STRICT", "INFORMATIONAL")
LIMIT_S = 300


def run_cases(runner, port, folder):
    """The runner's report of every case."""
    exclude = [word for case in COMPRESSION for word in ("-x", case)]
    run = subprocess.run([runner, *exclude, "-o", folder, f"127.0.0.1:{port}"],
                         capture_output=True, text=True, timeout=LIMIT_S)
    index = pathlib.Path(folder) / "index.json"
    if not index.exists():
        print(run.stdout, run.stderr, f"the runner ended with {run.returncode}", sep="\n")
        sys.exit(1)
    (cases,) = json.loads(index.read_text()).values()
    return cases


def main(echo_server, venv):
    if sys.version_info < (3, 10):
        skip(f"the suite needs Python 3.10, this is {sys.version.split()[0]}")
    inside = environment(pathlib.Path(venv).resolve(), PACKAGE,
                         no_build="the suite has no build for this machine")
    server = subprocess.Popen([echo_server], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline().split()[-1])
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            cases = run_cases(inside.with_name("kosoku"), port, folder)
        wall_s = time.monotonic() - begin
    finally:
        server.terminate()
        code = server.wait(10)
    counts = collections.Counter(case["behavior"] for case in cases.values())
    print(f"{len(cases)} cases in {wall_s:.1f} s:", dict(counts))
    check = Checks()
    for name, case in cases.items():
        check(case["behavior"] in PASSED and case["behaviorClose"] in PASSED,
              f"{name} {case['behavior']}, close {case['behaviorClose']}")
    check(len(cases) == CASES, f"{len(cases)} cases ran, wanted {CASES}")
    check(code == 0, f"the server ended with {code}, wanted 0")
    return check.end()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
