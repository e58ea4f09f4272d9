#!/usr/bin/env python3
"""python_wheels_test.py TENDON SOURCE BUILD ENVIRONMENTS VERSION ...: from a wheel to a
certificate, on Pythons that share a wheel.

Builds it around the engine of the folder BUILD with the first VERSION, such as 3.12; installs it
into a bare environment of each, imports it, runs the demo and certifies it. A Python that this
machine lacks is named. Exit code 77, "skipped: reason", where it cannot be built.
"""
import json
import sys
import time

from environment import Checks, environment, interpreter, skip
from python_wheel_test import BUILD, ENVIRONMENTS, MAKERS, NUMPY, SOURCE, called, wheel

VERSIONS = sys.argv[5:]
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
    built = VERSIONS[0]
    if not interpreter(built):
        skip(f"Python {built} is not here with its headers")
    maker = environment(ENVIRONMENTS / f"wheel_maker_{built}", " ".join(MAKERS), MAKERS,
                        interpreter(built))
    made = wheel(maker, BUILD / f"python_wheel_{built}", BUILD / f"python_{built}")
    for version in VERSIONS:
        if interpreter(version, headers=False):
            check_version(version, made)
        else:
            print(f"Python {version} is not here")
    print(f"{check.count} checks, {check.failures} failed")
    return check.failures > 0


if __name__ == "__main__":
    sys.exit(main())
