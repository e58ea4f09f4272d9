#!/usr/bin/env python3
"""lerobot_policy_test.py TENDON SOURCE BUILD ENVIRONMENTS: the Python package inside lerobot.

Builds the wheel as python_wheel_test.py does, installs it beside lerobot into an environment in
ENVIRONMENTS and runs tests/lerobot_policy.py there. PyTorch brings 3 GB along. Exit code 77,
"skipped: reason", where they cannot be had.
"""
import shutil
import subprocess
import sys

from environment import environment, interpreter, skip
from python_wheel_test import BUILD, ENVIRONMENTS, MAKERS, SOURCE, called, wheel

ENVIRONMENT = ["gym-pusht==0.1.8", "pymunk>=6.6,<7"]  # the lightest that lerobot knows


def lerobot_environment():
    """The interpreter of the environment that has lerobot."""
    python = interpreter("3.12") or interpreter("3.13") or skip(
        "lerobot needs Python 3.12 or newer, and the extension its headers")
    requirements = SOURCE / "tools/train_demo/requirements.txt"
    packages = ["-r", requirements, "lerobot[dataset]", *MAKERS, "setuptools", *ENVIRONMENT]
    return environment(ENVIRONMENTS / "lerobot",
                       " ".join([requirements.read_text(), *ENVIRONMENT]),
                       ["--only-binary", ":all:", *packages], python)


def main():
    inside = lerobot_environment()
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
