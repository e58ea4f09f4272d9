#!/usr/bin/env python3
"""Prints what the test runs of one command did: a line per build, what failed, and what was skipped
by reason, with the way to get it to run. The last line counts.

    tools/test_table.py [--only-unavoidable] RESULTS...

RESULTS are the JUnit files of ctest. With --only-unavoidable the exit code is 1 where something was
skipped that a machine with Debian's packages and PyPI has: then the set-up forgot a package.
"""
import argparse
import collections
import pathlib
import re
import sys
import xml.etree.ElementTree as xml

Test = collections.namedtuple("Test", "name build status output")
# What a reason looks like, whether it is for a machine to blame that has all packages of Debian 12
# and PyPI, and what gets the tests to run.
KINDS = (
    (r"no TTNN library|ttnn-sim makes it", True,
     "needs Python 3.12 or 3.10 with venv (Debian 12 has 3.11; PyPI has neither a wheel of the "
     "library for 3.11 nor an interpreter from Python's makers): put one on the PATH or name it in "
     "$PYTHON, then scripts/ttnn-sim"),
    (r"[Pp]ython 3\.\d+", True, "put a Python of one of these versions on the PATH"),
    (r"NVIDIA|CUDA|GPU", True, "scripts/cuda on a machine with an NVIDIA GPU"),
    (r"sanitizer", True, "the optimised build runs them"),
    (r"IPv6", True, "a network with IPv6"),
    (r"mount", True, "needs root, and a container that may mount"),
    (r"package index", False, "needs PyPI, or a mirror named in pip's configuration"),
)
# gtest: "file:12: Skipped\nreason"; Python tests: "skipped: reason"; unittest: "skipped 'reason'".
REASON = re.compile(r": Skipped\n(.+)|^skipped: (.+)|\.\.\. skipped ['\"](.+)['\"]", re.M)


def read(path):
    statuses = {"run": "passed", "fail": "failed"}
    return [Test(case.get("name"), path.parent.name, statuses.get(case.get("status"), "skipped"),
                 case.findtext("system-out") or "")
            for case in xml.parse(path).getroot().iter("testcase")]


def reasons(test):
    """Also of a test that passed but left out a part."""
    found = ["".join(groups) for groups in REASON.findall(test.output)]
    if test.status == "skipped" and not found:
        found = ["gave no reason"]
    return found


def kind(reason):
    return next((k for k in KINDS if re.search(k[0], reason)), (None, False, "unknown"))


def main(only_unavoidable, paths):
    tests = [test for path in paths for test in read(path)]
    count = collections.Counter((test.build, test.status) for test in tests)
    print(f"\n{'build':10}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for build in dict.fromkeys(test.build for test in tests):
        print(f"{build:10}" + "".join(f"{count[build, status]:>{width}}" for status, width in
                                      (("passed", 8), ("failed", 8), ("skipped", 9))))
    for test in tests:
        if test.status == "failed":
            print(f"FAILED {test.name} ({test.build})")
    skipped = collections.defaultdict(list)
    for test in tests:
        for reason in dict.fromkeys(reasons(test)):
            skipped[reason].append(test.name if test.status == "skipped" else
                                   f"a part of {test.name}")
    avoidable = 0
    for reason, names in skipped.items():
        _, unavoidable, way = kind(reason)
        avoidable += not unavoidable
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        print(f"skipped {len(names):3}: {reason[:160]}\n             ({shown})\n             {way}")
    if only_unavoidable and avoidable:
        print(f"{avoidable} of these reasons should not exist on a machine with Debian's packages "
              "and PyPI")
    total = collections.Counter(test.status for test in tests)
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return int(bool(total["failed"] or (only_unavoidable and avoidable)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only-unavoidable", action="store_true")
    parser.add_argument("results", nargs="+", type=pathlib.Path)
    given = parser.parse_args()
    sys.exit(main(given.only_unavoidable, given.results))
