#!/usr/bin/env python3
"""python_wheels_test.py TENDON SOURCE BUILD ENVIRONMENTS: from a wheel to a certificate, on the
Pythons that the package is for.

Builds wheels around the engine of the folder BUILD for Python 3.10 and for 3.12 and newer; installs
each into bare environments of 3.10, 3.12 and 3.13, imports it, runs the demo and certifies it. A
Python that this machine lacks is named. Exit code 77, "skipped: reason", where all are missing.
"""
import json
import sys
import time

from environment import Checks, environment, interpreter, skip
from python_wheel_test import BUILD, ENVIRONMENTS, MAKERS, NUMPY, SOURCE, called, wheel

BUILT_FOR = {"3.10": "3.10", "3.12": "3.12", "3.13": "3.12"}  # 3.12 and newer share a wheel
check = Checks()


def check_version(version, made):
    """From `pip install` in a bare environment to the demo's certificate."""
    python = interpreter(version, headers=False)
    bare = environment(ENVIRONMENTS / f"wheel_bare_{version}", " ".join(NUMPY), NUMPY, python)
    begin = time.monotonic()
    called(bare, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-index", "--force-reinstall", made)
    said = json.loads(called(bare, "-c", "import json, tendon_pi0; "
                             "print(json.dumps(tendon_pi0.certify('demo')))"))
    check(said["passed"], f"Python {version}: {said}")
    tendon = bare.with_name("tendon")
    shown = called(tendon, "demo", "--episodes", "1", "--verb", "reach", "--no-color")
    check("reach" in shown, f"Python {version}: the demo says {shown}")
    printed = json.loads(called(tendon, "certify", "demo", "--json"))
    check(printed == said, f"Python {version}: the command's certificate is {printed}")
    print(f"Python {version}: {made.name} installed, imported, demo seen and certified twice in "
          f"{time.monotonic() - begin:.1f} s")


def main():
    there = [version for version in BUILT_FOR
             if interpreter(version, headers=False) and interpreter(BUILT_FOR[version])]
    missing = sorted(set(BUILT_FOR) - set(there))
    if not there:
        skip("none of Python 3.10, 3.12 and 3.13 is here with its headers")
    if missing:
        print("not here, or without headers: Python", ", ".join(missing))
    made = {}
    for version in there:
        built = BUILT_FOR[version]
        if built not in made:
            maker = environment(ENVIRONMENTS / f"wheel_maker_{built}", " ".join(MAKERS), MAKERS,
                                interpreter(built))
            made[built] = wheel(maker, BUILD / f"python_wheel_{built}", BUILD / f"python_{built}")
        check_version(version, made[built])
    print(f"{check.count} checks, {check.failures} failed")
    return check.failures > 0


if __name__ == "__main__":
    sys.exit(main())
