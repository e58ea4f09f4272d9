#!/usr/bin/env python3
"""python_wheel_test.py TENDON SOURCE BUILD ENVIRONMENTS WHAT: the Python package as its users have
it.

Builds a wheel around the engine of the folder BUILD, installs it into environments in ENVIRONMENTS,
and looks at it there. WHAT is one of

    package             the wheel's files, and tests/python_package.py beside NumPy only
    certify VERSION...  from `pip install` in a bare environment to the demo's certificate, on
                        Pythons that share the wheel of the first VERSION, such as 3.12
    lerobot             tests/lerobot_policy.py beside lerobot; PyTorch brings 3 GB along
    ray                 tests/ray_cluster.py beside Ray, which brings 250 MB along

Packages are fetched once. A Python that this machine lacks is named. Exit code 77, "skipped:
reason", where they cannot be had.
"""
import json
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile

from environment import OWN_VERSION, Checks, environment, interpreter, memory_was_bounded, skip

SOURCE, BUILD, ENVIRONMENTS = map(pathlib.Path, sys.argv[2:5])
MAKERS = ("scikit-build-core==1.1.2", "nanobind==3.1.0")
RAY = ("ray[serve]==2.60.0", "numpy>=1.22", "openpi-client==0.1.2")
LEROBOT = ("lerobot[dataset]", "setuptools",
           "gym-pusht==0.1.8", "pymunk>=6.6,<7")  # the lightest environment that lerobot knows
WHEEL_MB_MAX = 15
check = Checks()


def called(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        print(done.stdout + done.stderr)
        sys.exit(f"{command[0]} failed with {done.returncode}")
    return done.stdout


def pip(python, verb, *arguments):
    called(python, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", "--no-deps",
           "--no-index", *arguments)


def wheel(version):
    """Around the engine that is built already: the extension alone is compiled."""
    python = interpreter(version) or skip(f"Python {version} is not here with its headers")
    maker = environment(ENVIRONMENTS / f"wheel_maker_{version}", *MAKERS, python=python)
    out = BUILD / f"python_wheel_{version}"
    shutil.rmtree(out, ignore_errors=True)
    pip(maker, "wheel", "--no-build-isolation", "--wheel-dir", out,
        "--config-settings", "cmake.source-dir=python",
        "--config-settings", f"build-dir={BUILD / f'python_{version}'}",
        "--config-settings", f"cmake.define.tendon_DIR={BUILD}", SOURCE)
    made, = out.glob("*.whl")
    return made


def install(python, *packages):
    pip(python, "install", "--no-build-isolation", "--force-reinstall", *packages)


def bare(version, made):
    """The interpreter of an environment that holds the wheel and NumPy."""
    inside = environment(ENVIRONMENTS / f"wheel_bare_{version}", "numpy>=1.22",
                         python=interpreter(version, headers=False))
    install(inside, made)
    return inside


def run_inside(inside, script, *arguments):
    done = subprocess.run([inside, "-B", SOURCE / "tests" / script, *arguments])
    check(done.returncode == 0, f"{script} inside the environment")


def check_demo(command):
    shown = called(command, "demo", "--episodes", "1", "--verb", "reach", "--no-color")
    check("reach" in shown, f"{command}: the demo says {shown}")


def package():
    if sys.version_info < (3, 10):
        skip(f"the package is for Python 3.10 and newer, this is {OWN_VERSION}")
    if not interpreter(OWN_VERSION):
        skip(f"{sysconfig.get_path('include')}/Python.h is missing, as Debian's python3-dev has it")
    made = wheel(OWN_VERSION)
    names = zipfile.ZipFile(made).namelist()
    for name in ("tendon_pi0/__init__.py", "tendon_pi0/py.typed", "tendon_pi0/_engine.pyi"):
        check(name in names, f"the wheel lacks {name}: {names}")
    check(any(name.endswith("scripts/tendon") for name in names), f"no command: {names}")
    megabytes = made.stat().st_size / 1e6
    check(megabytes <= WHEEL_MB_MAX, f"the wheel has {megabytes:.1f} MB, at most {WHEEL_MB_MAX}")
    inside = bare(OWN_VERSION, made)
    check_demo(inside.with_name("tendon"))
    run_inside(inside, "python_package.py", inside.with_name("tendon"))
    check(memory_was_bounded(), "memory")


def certify(*versions):
    made = wheel(versions[0])
    for version in versions:
        if not interpreter(version, headers=False):
            print(f"Python {version} is not here")
            continue
        begin = time.monotonic()
        inside = bare(version, made)
        said = json.loads(called(inside, "-c", "import json, tendon_pi0; "
                                 "print(json.dumps(tendon_pi0.certify('demo')))"))
        check(said["passed"], f"Python {version}: {said}")
        check_demo(inside.with_name("tendon"))
        shown = json.loads(called(inside.with_name("tendon"), "certify", "demo", "--json"))
        check(shown == said, f"Python {version}: the command's certificate is {shown}")
        print(f"Python {version}: {made.name} installed, imported, demo seen and certified twice "
              f"in {time.monotonic() - begin:.1f} s")


def lerobot_environment():
    """The interpreter of the environment that has lerobot."""
    python = interpreter("3.12") or interpreter("3.13") or skip(
        "lerobot needs Python 3.12 or newer, and the extension its headers")
    return environment(ENVIRONMENTS / "lerobot", SOURCE / "tools/train_demo/requirements.txt",
                       *LEROBOT, python=python)


def lerobot():
    inside = lerobot_environment()
    made = wheel("3.12" if interpreter("3.12") else "3.13")
    policy = BUILD / "lerobot_policy_tendon"
    shutil.rmtree(policy, ignore_errors=True)  # setuptools builds in its source folder
    shutil.copytree(SOURCE / "python/lerobot_policy_tendon", policy)
    install(inside, made, policy)
    called("cmake", "--build", BUILD, "--target", "drive_table")
    run_inside(inside, "lerobot_policy.py", SOURCE, BUILD / "drive_table")


def ray():
    inside = environment(ENVIRONMENTS / "ray", *RAY, no_build="Ray has no wheel for this Python")
    install(inside, wheel(OWN_VERSION))
    called("cmake", "--build", BUILD, "--target", "drive_table")
    run_inside(inside, "ray_cluster.py", SOURCE, BUILD / "drive_table")


if __name__ == "__main__":
    what, *versions = sys.argv[5:]
    {"package": package, "certify": certify, "lerobot": lerobot, "ray": ray}[what](*versions)
    sys.exit(check.end())
