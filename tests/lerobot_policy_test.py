#!/usr/bin/env python3
"""lerobot_policy_test.py TENDON SOURCE BUILD ENVIRONMENTS: the Python package inside lerobot.

Builds the wheel as python_wheel_test.py does, installs it beside lerobot into an environment in
ENVIRONMENTS and runs tests/lerobot_policy.py there. PyTorch brings 3 GB along. Exit code 77,
"skipped: reason", where they cannot be had.
"""
import pathlib
import shutil
import subprocess
import sys

from environment import environment, skip
from python_wheel_test import BUILD, ENVIRONMENTS, MAKERS, SOURCE, called, wheel


def python_for_lerobot():
    """Of 3.12 or newer, with the headers that the extension needs."""
    for name in (sys.executable, "python3.13", "python3.12"):
        found = shutil.which(name)
        asked = ("import sys, sysconfig; "
                 "print(sys.version_info >= (3, 12), sysconfig.get_path('include'))")
        if not found:
            continue
        done = subprocess.run([found, "-c", asked], capture_output=True, text=True)
        new_enough, _, include = done.stdout.strip().partition(" ")
        if new_enough == "True" and (pathlib.Path(include) / "Python.h").exists():
            return found
    return skip("lerobot needs Python 3.12 or newer, and the extension its headers")


def main():
    python = python_for_lerobot()
    requirements = SOURCE / "tools/train_demo/requirements.txt"
    packages = ["-r", requirements, "lerobot[dataset]", *MAKERS, "setuptools"]
    inside = environment(ENVIRONMENTS / "lerobot", requirements.read_text(),
                         ["--only-binary", ":all:", *packages], python)
    made = wheel(inside, BUILD / "python_wheel_lerobot", BUILD / "python_lerobot")
    package = BUILD / "lerobot_policy_tendon"
    shutil.rmtree(package, ignore_errors=True)  # setuptools builds in its source folder
    shutil.copytree(SOURCE / "python/lerobot_policy_tendon", package)
    called(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-index", "--no-build-isolation", "--force-reinstall", made, package)
    called("cmake", "--build", BUILD, "--target", "drive_table")
    return subprocess.run([inside, "-B", SOURCE / "tests/lerobot_policy.py", SOURCE,
                           BUILD / "drive_table"]).returncode


if __name__ == "__main__":
    sys.exit(main())
