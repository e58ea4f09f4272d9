#!/usr/bin/env python3
"""ray_test.py TENDON SOURCE BUILD ENVIRONMENTS: the Python package on a Ray cluster.

Builds the wheel as python_wheel_test.py does, installs it beside Ray into an environment in
ENVIRONMENTS and runs tests/ray_cluster.py there. Ray brings 250 MB along. Exit code 77, "skipped:
reason", where they cannot be had.
"""
import subprocess
import sys

from environment import environment
from python_wheel_test import BUILD, ENVIRONMENTS, MAKERS, SOURCE, called, wheel

PACKAGES = ["ray[serve]==2.60.0", "numpy>=1.22", "openpi-client==0.1.2", *MAKERS]


def main():
    inside = environment(ENVIRONMENTS / "ray", " ".join(PACKAGES),
                         ["--only-binary", ":all:", *PACKAGES],
                         no_build="Ray has no wheel for this Python")
    made = wheel(inside, BUILD / "python_wheel_ray", BUILD / "python_ray")
    called(inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-index", "--force-reinstall", made)
    called("cmake", "--build", BUILD, "--target", "drive_table")
    return subprocess.run([inside, "-B", SOURCE / "tests/ray_cluster.py", SOURCE,
                           BUILD / "drive_table"]).returncode


if __name__ == "__main__":
    sys.exit(main())
