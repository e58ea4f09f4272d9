"""What the tests in Python share: the command, checks that are counted, a limit on memory, virtual
environments with packages from PyPI."""
import contextlib
import pathlib
import resource
import shutil
import subprocess
import sys

MEMORY_MIB_MAX = 1024
NO_NETWORK = ("connection", "timed out", "name resolution", "proxy", "unreachable")


def tendon(*arguments, before=(), **options):
    """Runs the command, which is the first argument of every script that does."""
    return subprocess.run([*before, sys.argv[1], *map(str, arguments)], capture_output=True,
                          text=True, errors="replace", timeout=120, **options)


class Checks:
    """Says what does not hold, and goes on."""

    def __init__(self):
        self.count, self.failures = 0, 0

    def __call__(self, condition, what):
        self.count += 1
        if not condition:
            self.failures += 1
            print("FAILED", what, flush=True)

    def run(self, *arguments):
        """Exit code, standard output and standard error of the command."""
        done = tendon(*arguments)
        return done.returncode, done.stdout, done.stderr

    def expect(self, code, piece, *arguments):
        """The command ends with `code` and prints `piece` somewhere."""
        got, out, err = self.run(*arguments)
        self(got == code and piece in out + err,
             f"tendon {' '.join(map(str, arguments))}\n  exit {got}, expected {code} and "
             f"{piece!r}\n  {out[-300:]}\n  {err[-300:]}")

    @contextlib.contextmanager
    def refused(self, piece, what, error=RuntimeError):
        """The block ends with `error`, whose text has `piece`."""
        try:
            yield
        except error as e:
            self(piece.lower() in str(e).lower(), f"{what}: '{piece}' is not in '{e}'")
        else:
            self(False, f"{what}: nothing was refused")


def skip(reason):
    print("skipped:", reason)
    sys.exit(77)


def memory_was_bounded():
    """Whether no process that this one started, nor theirs, needed more than a test may."""
    mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"largest process: {mib} MiB, at most {MEMORY_MIB_MAX} are allowed")
    return mib <= MEMORY_MIB_MAX


def interpreter(version, headers=True):
    """The Python of a version such as "3.12" on this machine, or None; with `headers`, one that
    extensions can be compiled for."""
    asked = ("import sys, sysconfig; print('%d.%d' % sys.version_info[:2], "
             "sysconfig.get_path('include'))")
    name = f"python{version}"
    for found in (sys.executable, shutil.which(name),
                  *pathlib.Path.home().glob(f".pyenv/versions/{version}*/bin/{name}")):
        done = found and subprocess.run([found, "-c", asked], capture_output=True, text=True)
        if not done or done.returncode:
            continue  # a shim without its interpreter
        is_version, _, include = done.stdout.strip().partition(" ")
        if is_version == version and (
                not headers or (pathlib.Path(include) / "Python.h").exists()):
            return str(found)
    return None


def environment(folder, wanted, packages, python=sys.executable, no_build=None):
    """The interpreter of a virtual environment in `folder`, made once per text `wanted`.

    `packages` are pip's arguments. Skips the test where no package index is in reach, and, given a
    reason `no_build`, where the index has nothing for this machine."""
    inside, stamp = folder / "bin/python", folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return inside
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run([python, "-m", "venv", folder], capture_output=True, text=True)
    if made.returncode:
        skip("python -m venv failed: " + " ".join((made.stdout + made.stderr).split())[:200])
    pip = subprocess.run([inside, "-m", "pip", "install", "--disable-pip-version-check",
                          "--retries", "1", "--timeout", "20", *packages],
                         capture_output=True, text=True)
    if pip.returncode:
        lines = (pip.stdout + pip.stderr).splitlines()
        for line in lines:
            if any(word in line.lower() for word in NO_NETWORK):
                skip("no package index in reach: " + line[:200])
            if no_build and "no matching distribution" in line.lower():
                skip(f"{no_build}: {line[:200]}")
        print(*lines, sep="\n")
        sys.exit(1)
    stamp.write_text(wanted)
    return inside
