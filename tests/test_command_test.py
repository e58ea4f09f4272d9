#!/usr/bin/env python3
"""scripts/test with one test that fails on purpose: test_command_test.py PROJECT SCRATCH

A red test in either half ends it with exit code 8; where none is red, the short form ends with 0
and the sanitized one with 1, since no row of docs/reliability.md was run."""
import pathlib
import shutil
import subprocess
import sys

SHORT = (("release", 8, "0 passed, 1 failed, 0 skipped"),
         ("none", 0, "1 passed, 0 failed, 0 skipped"))
SANITIZED = (("dev", 8, "1 passed, 1 failed, 0 skipped"),
             ("release", 8, "1 passed, 1 failed, 0 skipped"),
             ("none", 1, "2 passed, 0 failed, 0 skipped"))


def main(project, scratch):
    wrong = 0
    runs = [((), *run) for run in SHORT]
    if shutil.which("clang++"):  # scripts/test --sanitize has installed it
        runs += [(("--sanitize",), *run) for run in SANITIZED]
    for form, failing, code, counted in runs:
        done = subprocess.run([pathlib.Path(project, "scripts/test"), *form, "--builds",
                               pathlib.Path(scratch), f"-DTENDON_FAILING_TEST={failing}"],
                              capture_output=True, text=True)
        named = f"FAILED fails_on_purpose ({failing})\n" in done.stdout
        right = (done.returncode == code and named == (failing != "none") and
                 done.stdout.splitlines()[-1] == counted)
        print(f"{'ok' if right else 'WRONG':6}scripts/test {' '.join(form):10}, failing in "
              f"{failing}: exit code {done.returncode}")
        if not right:
            print(done.stdout, done.stderr)
        wrong += not right
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
