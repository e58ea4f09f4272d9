#!/usr/bin/env python3
"""python_wheel_test.py TENDON SOURCE BUILD ENVIRONMENTS: the Python package as its users have it.

Builds the wheel around the engine of the folder BUILD, installs it into an environment that holds
NumPy only, and runs tests/python_package.py there. The packages go into environments in
ENVIRONMENTS, once. Exit code 77, "skipped: reason", where they cannot be had.
"""
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

from environment import Checks, environment, memory_was_bounded, skip

SOURCE, BUILD, ENVIRONMENTS = map(pathlib.Path, sys.argv[2:5])
MAKERS = ["scikit-build-core==1.1.2", "nanobind==3.1.0"]
NUMPY = ["--only-binary", ":all:", "numpy>=1.22"]
WHEEL_MB_MAX = 15
check = Checks()


def called(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    if done.returncode:
        print(done.stdout + done.stderr)
        sys.exit(f"{command[0]} failed with {done.returncode}")
    return done.stdout


def wheel(maker, out, folder):
    """Around the engine that is built already: the extension alone is compiled."""
    shutil.rmtree(out, ignore_errors=True)
    called(maker, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-build-isolation", "--no-index", "--wheel-dir", out,
           "--config-settings", "cmake.source-dir=python",
           "--config-settings", f"build-dir={folder}",
           "--config-settings", f"cmake.define.tendon_DIR={BUILD}", SOURCE)
    made, = out.glob("*.whl")
    return made


def check_files(made):
    names = zipfile.ZipFile(made).namelist()
    for name in ("tendon_pi0/__init__.py", "tendon_pi0/py.typed", "tendon_pi0/_engine.pyi"):
        check(name in names, f"the wheel lacks {name}: {names}")
    check(any(name.endswith("scripts/tendon") for name in names), f"no command: {names}")
    megabytes = made.stat().st_size / 1e6
    check(megabytes <= WHEEL_MB_MAX, f"the wheel has {megabytes:.1f} MB, at most {WHEEL_MB_MAX}")


def main():
    if sys.version_info < (3, 10):
        skip(f"the package is for Python 3.10 and newer, this is {sys.version.split()[0]}")
    header = pathlib.Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        skip(f"{header} is missing, as Debian's python3-dev has it")
    maker = environment(ENVIRONMENTS / "wheel_maker", " ".join(MAKERS), MAKERS)
    made = wheel(maker, BUILD / "python_wheel", BUILD / "python")
    check_files(made)
    bare = environment(ENVIRONMENTS / "wheel_bare", " ".join(NUMPY), NUMPY)
    called(bare, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-index", "--force-reinstall", made)
    command = bare.with_name("tendon")
    check("reach" in called(command, "demo", "--episodes", "1", "--verb", "reach", "--no-color"),
          "tendon demo, from the wheel")
    done = subprocess.run([bare, "-B", SOURCE / "tests/python_package.py", command])
    check(done.returncode == 0, "the tests inside the environment")
    check(memory_was_bounded(), "memory")
    print(f"{check.count} checks, {check.failures} failed")
    return check.failures > 0


if __name__ == "__main__":
    sys.exit(main())
