#!/usr/bin/env python3
"""scripts/test with one test that fails on purpose: test_command_test.py PROJECT SCRATCH

A red test in either half ends it with exit code 8; where none is red but the rows of
docs/reliability.md were not run, with 1."""
import pathlib
import subprocess
import sys


def main(project, scratch):
    wrong = 0
    for failing, code, counted in (("dev", 8, "1 passed, 1 failed, 0 skipped"),
                                   ("release", 8, "1 passed, 1 failed, 0 skipped"),
                                   ("none", 1, "2 passed, 0 failed, 0 skipped")):
        done = subprocess.run([pathlib.Path(project, "scripts/test"), "--sanitize", "--builds",
                               pathlib.Path(scratch), f"-DTENDON_FAILING_TEST={failing}"],
                              capture_output=True, text=True)
        named = f"FAILED fails_on_purpose ({failing})\n" in done.stdout
        right = (done.returncode == code and named == (failing != "none") and
                 done.stdout.splitlines()[-1] == counted)
        print(f"{'ok' if right else 'WRONG':6}failing in {failing}: exit code {done.returncode}")
        if not right:
            print(done.stdout, done.stderr)
        wrong += not right
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
