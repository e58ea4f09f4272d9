"""What the tests in Python share: the command, checks that are counted, a limit on memory, virtual
environments with packages from PyPI, tensors of a file."""
import contextlib
import json
import pathlib
import random
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import unittest

MEMORY_MIB_MAX = 1024
DATA = pathlib.Path(__file__).resolve().with_name("data")
TOKENIZER = ("--tokenizer", DATA / "tokenizer/small_tokenizer.json")
FLOWER = DATA / "preprocess/images/flower_96x128_small.png"
NO_NETWORK = ("connection", "timed out", "name resolution", "proxy", "unreachable")
OWN_VERSION = "%d.%d" % sys.version_info[:2]


def tendon(*arguments, before=()):
    """Runs the command, which is the first argument of every script that does."""
    return subprocess.run([*before, sys.argv[1], *map(str, arguments)], capture_output=True,
                          text=True, errors="replace", timeout=120)


def ends(code, piece, *arguments, before=()):
    """Runs the command, which must end with `code` and print `piece` somewhere."""
    done = tendon(*arguments, before=before)
    assert done.returncode == code and piece in done.stdout + done.stderr, (
        f"tendon {' '.join(map(str, arguments))}\n  exit {done.returncode}, expected {code} and "
        f"{piece!r}\n  {done.stdout[-300:]}\n  {done.stderr[-300:]}")
    return done


def printed(*arguments, before=()):
    """The JSON that the command prints, which must succeed."""
    return json.loads(ends(0, "", *arguments, "--json", before=before).stdout)


class Checks:
    """Says what does not hold, and goes on."""

    def __init__(self):
        self.count, self.failures = 0, 0

    def __call__(self, condition, what):
        self.count += 1
        if not condition:
            self.failures += 1
            print("FAILED", what, flush=True)

    def expect(self, *expected):
        """The command ends as `ends` wants it."""
        try:
            ends(*expected)
        except AssertionError as error:
            self(False, error)
        else:
            self(True, "")

    @contextlib.contextmanager
    def refused(self, piece, what, error=RuntimeError):
        """The block ends with `error`, whose text has `piece`."""
        try:
            yield
        except error as e:
            self(piece.lower() in str(e).lower(), f"{what}: '{piece}' is not in '{e}'")
        else:
            self(False, f"{what}: nothing was refused")

    def end(self):
        """The script's exit code, after a line of counts."""
        print(f"{self.count} checks, {self.failures} failed")
        return int(self.failures > 0)


class WithFolder(unittest.TestCase):
    """Each test has a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)


def run_tests():
    """The exit code of a script of unittest's cases."""
    done = unittest.main(argv=sys.argv[:1], verbosity=2, warnings="ignore", exit=False)
    return int(not (done.result.wasSuccessful() and memory_was_bounded()))


def skip(reason):
    print("skipped:", reason)
    sys.exit(77)


def memory_was_bounded():
    """Whether no process that this one started, nor theirs, needed more than a test may."""
    mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"largest process: {mib} MiB, at most {MEMORY_MIB_MAX} are allowed")
    return mib <= MEMORY_MIB_MAX


def free_ports(count):
    """Such that no other test gets from the system by asking for any."""
    found = []
    for port in random.sample(range(20000, 32000), 12000):
        with socket.socket() as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} free ports, {count} are needed")


def safetensors(header, data=b""):
    """The bytes of a file; the header is a text or bytes."""
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path):
    """The header's bytes, and {name: (its entry there, its own bytes)}."""
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    entries = json.loads(raw[8:end])
    entries.pop("__metadata__", None)
    return raw[8:end], {name: (entry, raw[end:][slice(*entry["data_offsets"])])
                        for name, entry in entries.items()}


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


def environment(folder, *wanted, python=sys.executable, no_build=None):
    """The interpreter of a virtual environment in `folder`, made once for `wanted`: packages, and
    files that list some.

    Skips the test where no package index is in reach, and, given a reason `no_build`, where the
    index has nothing for this machine."""
    inside, stamp = folder / "bin/python", folder / "installed.txt"
    files = {each: each.read_text() for each in wanted if isinstance(each, pathlib.Path)}
    text = "\n".join(files.get(each, each) for each in wanted)
    if stamp.exists() and stamp.read_text() == text:
        return inside
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run([python, "-m", "venv", folder], capture_output=True, text=True)
    if made.returncode:
        skip("python -m venv failed: " + " ".join((made.stdout + made.stderr).split())[:200])
    # Compiling every module takes longer than compiling what a test imports, when it does.
    pip = subprocess.run([inside, "-m", "pip", "install", "--disable-pip-version-check",
                          "--retries", "1", "--timeout", "20", "--no-compile", "--only-binary",
                          ":all:", *(word for each in wanted
                                     for word in (("-r", each) if each in files else (each,)))],
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
    stamp.write_text(text)
    return inside
