"""The command in a hostile world: damaged files, full disks, little memory, kill -9.

    hostile_test.py TENDON [--sanitized]

Prints a line per row of the table of failure tests, with what it ran. A sanitized command is slower
and larger: it runs fewer repetitions and without limits of time and memory.
"""
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import unittest

from environment import DATA, TOKENIZER, WithFolder, ends, free_ports, run_tests, safetensors
from policy_server import GREY, REQUEST, TENDON, Server, Socket, array, with_keys, with_library

SANITIZED = "--sanitized" in sys.argv
KILLS = 10 if SANITIZED else 200
TINY = DATA / "golden/tiny-checkpoint-lerobot-pi0"
MIB = 1 << 20


class WithCheckpoint(WithFolder):
    """In the folder is a copy of the tiny checkpoint; `opened` are the arguments that open it."""

    def setUp(self):
        super().setUp()
        self.checkpoint = shutil.copytree(TINY / "checkpoint", self.folder / "checkpoint")
        self.opened = (self.checkpoint, "--config", TINY / "config.json", *TOKENIZER)


# A process counts as its own what its parent held when it was forked: a small one starts it.
MEASURE = """
import os, sys
child = os.fork()
if child == 0:
    os.dup2(1, 2)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(child, 0)
print()
print(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def listed(counts):
    """The most frequent first: 12 complete, 3 absent."""
    return ", ".join(f"{n} {what}" for what, n in counts.most_common())


def measured(*arguments):
    """Exit code, what it said, seconds of processor time and MiB of the largest resident set."""
    done = subprocess.run([sys.executable, "-S", "-c", MEASURE, TENDON, *map(str, arguments)],
                          capture_output=True, text=True, timeout=120)
    said, numbers = done.stdout.rstrip("\n").rsplit("\n", 1)
    code, seconds, mib = numbers.split()
    return int(code), said, float(seconds), float(mib)


def in_parallel(action, cases, workers=3):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(action, cases))


def entry(name, shape, begin=0, end=8):
    return f'"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}'


# What might take time, memory or the screen; Safetensors.hostile_headers has the rest.
HOSTILE_FILES = {
    "a product that overflows": safetensors(
        "{" + entry("a", "[4194305,4194305,211106198978564]") + "}", bytes(8)),
    "65537 tensors": safetensors("{" + ",".join(
        entry(f"t{i}", "[1]", 4 * i, 4 * i + 4) for i in range(65537)) + "}", bytes(4 * 65537)),
    "a header of 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "a header of 16 MiB of nesting": safetensors(b'{"a":' + b"[" * (16 * MIB - 5)),
    "a name that clears the screen": safetensors("{" + entry("a\\u001b[2J", "[2]") + "}", bytes(8)),
    "a name of 16 MiB": safetensors(b'{"' + b"n" * (16 * MIB - 2)),
}


class DamagedCheckpoints(WithCheckpoint):
    def test_hostile_shapes_are_refused_at_once_and_in_little_memory(self):  # row 6
        slowest = largest = 0
        for what, content in HOSTILE_FILES.items():
            (self.checkpoint / "model.safetensors").write_bytes(content)
            code, said, seconds, mib = measured("inspect", *self.opened)
            self.assertEqual(code, 3, f"{what}: {said}")
            self.assertIn("model.safetensors", said, what)
            slowest, largest = max(slowest, seconds), max(largest, mib)
        if not SANITIZED:
            self.assertLess(largest, 64)
        print(f"row 6: {len(HOSTILE_FILES)} hostile files, at most {slowest * 1e3:.0f} ms of "
              f"processor and {largest:.0f} MiB")


def converted(scratch):
    """A file of a synthetic model, 30 MB."""
    sizes = {"width": 512, "mlp": 2048, "heads": 4, "kv_heads": 1, "head_dim": 64, "depth": 4}
    config, out = scratch / "sizes.json", scratch / "converted.safetensors"
    config.write_text(json.dumps({"vlm": {**sizes, "vocab": 512}, "expert": {**sizes, "mlp": 512}}))
    ends(0, "", "convert", "synthetic:pi0-small", "--config", config, out)
    return out


def ask_tiny(client, prompt="pick up the red cube"):
    """The tiny checkpoint's observation; its other two cameras are absent."""
    return client.ask(with_keys(b"\x80", {
        "observation.images.base_0_rgb": GREY, "observation.state": array(b"<f8", [14], bytes(112)),
        "prompt": b"\xd9" + bytes([len(prompt)]) + prompt.encode()}))


class ShrinkingFiles(WithCheckpoint):
    """Row 5. Weights are always mapped: there is no mode that reads."""

    def test_a_file_that_shrinks_while_it_is_served_ends_with_exit_3(self):
        packed = self.folder / "packed.safetensors"
        ends(0, "", "convert", *self.opened, packed)
        for model, file, left in ((self.opened, self.checkpoint / "model.safetensors", 4096),
                                  (self.opened, self.checkpoint / "model.safetensors", 0),
                                  ((packed,), packed, 8192)):
            whole = file.read_bytes()
            with Server("--quiet", model=model) as server:
                client = Socket(server.port)
                self.assertEqual(ask_tiny(client)[0], 2)
                os.truncate(file, left)
                with self.assertRaises(ConnectionError):
                    ask_tiny(client, "a blue one")
                self.assertEqual(server.wait(), 3)
                self.assertRegex(server.log[-1], r"^tendon: a model file was cut short .*\n$")
            file.write_bytes(whole)
        print("row 5: 3 files cut while they were served")

    def test_a_file_that_shrinks_while_it_is_loaded_is_refused_or_was_read(self):
        dice = random.Random(5)
        whole = converted(self.folder)
        begin = time.monotonic()
        ends(0, "", "inspect", whole)
        longest_s = time.monotonic() - begin

        def cut(number):
            file = self.folder / f"{number}.safetensors"
            shutil.copyfile(whole, file)
            child = subprocess.Popen([TENDON, "inspect", file], stdout=subprocess.DEVNULL,
                                     stderr=subprocess.PIPE, text=True)
            time.sleep(dice.uniform(0, longest_s))
            os.truncate(file, dice.choice((0, 4096, MIB, whole.stat().st_size // 2)))
            said = child.communicate()[1]
            file.unlink()
            self.assertIn(child.returncode, (0, 3), said)
            return "read" if child.returncode == 0 else \
                "cut while mapped" if "while it was in use" in said else "refused"

        outcomes = collections.Counter(in_parallel(cut, range(15 if SANITIZED else 40), 2))
        self.assertGreater(outcomes["cut while mapped"], 0)
        print(f"row 5: cut while loading: {listed(outcomes)}")


class Killed(WithCheckpoint):
    """Row 7: kill -9 at random times."""

    def kill(self, server):
        self.assertIsNone(server.process.poll(), "it ended by itself")
        server.stop(signal.SIGKILL)

    def kills_while(self, loading, port):
        dice = random.Random(port)
        begin = time.monotonic()
        server = Server(port=port)
        load_s = time.monotonic() - begin
        begin = time.monotonic()
        Socket(port).ask()
        infer_s = time.monotonic() - begin
        self.kill(server)
        for _ in range(KILLS // 2):
            server = Server(port=port, wait=not loading)
            if loading:
                time.sleep(dice.uniform(0, 1.2 * load_s))
            else:
                client = Socket(port)  # open until the server is dead: its port remembers that
                client.send(REQUEST)
                time.sleep(dice.uniform(0, infer_s))
            self.kill(server)
        server = Server(port=port)
        self.assertEqual(Socket(port).ask()[0], 2)
        self.kill(server)

    def test_a_server_restarts_at_once_on_its_port(self):
        in_parallel(lambda case: self.kills_while(*case),
                    zip((True, False, True, False), free_ports(4)), 2)
        print(f"row 7: {KILLS} kills while loading, {KILLS} during inference")

    def test_a_converted_file_is_complete_or_absent(self):
        outcomes = collections.Counter()

        def kill_conversions(name):
            dice = random.Random(name)
            out = self.folder / f"{name}.safetensors"
            part = out.with_suffix(".safetensors.part")
            begin = time.monotonic()
            ends(0, "", "convert", *self.opened, out)
            longest_s = time.monotonic() - begin
            for round_ in range(KILLS // 2):
                if round_ % 2 == 0:
                    out.unlink(missing_ok=True)  # else an older one lies there
                child = subprocess.Popen([TENDON, "convert", *self.opened, out],
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(dice.uniform(0, longest_s / 2))
                child.send_signal(signal.SIGINT if round_ % 3 == 0 else signal.SIGKILL)
                child.wait()
                if part.exists() and can_write_nameless(self.folder):
                    self.assertEqual(round_ % 2, 1, "half-written, beside it")
                    part.replace(out)  # ended before it replaced the older one: complete
                if not out.exists():
                    outcomes["absent"] += 1
                    continue
                ends(0, "", "inspect", out)
                outcomes["complete"] += 1
            ends(0, "", "convert", *self.opened, out)

        in_parallel(kill_conversions, ("a", "b"), 2)
        self.assertGreater(outcomes["absent"], 0)
        print(f"row 7: {KILLS} conversions killed: {listed(outcomes)}")


def can_write_nameless(folder):
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def small_disk(scratch, kib):
    """A file system of its own, or None where mounting is not allowed."""
    folder = pathlib.Path(scratch, f"disk{kib}")
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder],
                           capture_output=True)
    try:
        yield folder if mount.returncode == 0 else None
    finally:
        if mount.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=True)


def limited(bytes_max):
    """Runs what follows with files of at most so many bytes."""
    return ("prlimit", f"--fsize={bytes_max}")


EIO = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static long left = LEFT;
    ssize_t write(int file, const void* data, size_t size) {
      if (file > 2 && (left -= (long)size) < 0) { errno = EIO; return -1; }
      return syscall(SYS_write, file, data, size);
    }
    int fsync(int file) { (void)file; errno = EIO; return -1; }"""


class FullDisks(WithCheckpoint):
    """Row 8."""

    def refused(self, out, before=()):
        ends(3, out.name, "convert", *self.opened, out, before=before)
        self.assertEqual(list(out.parent.glob(out.name + "*")), [], "nothing half-written remains")

    def test_a_conversion_that_does_not_fit_leaves_nothing(self):
        kinds = collections.Counter()
        whole = self.folder / "whole.safetensors"
        ends(0, "", "convert", *self.opened, whole)
        size = whole.stat().st_size

        def on_disk(kib):
            with small_disk(self.folder, kib) as folder:
                if folder:
                    self.refused(folder / "x.safetensors")
                    kinds["small disks"] += 1

        in_parallel(on_disk, [4 * (1 + size * i // (20 * 4096)) for i in range(20)])
        in_parallel(lambda limit: self.refused(self.folder / f"{limit}.safetensors",
                                               limited(limit)),
                    [size * i // 20 for i in range(20)])
        kinds["limits of a file's size"] += 20
        with small_disk(self.folder, 8192) as folder:
            if folder:
                subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
                self.refused(folder / "x.safetensors")
                kinds["read-only disks"] += 1
        print(f"row 8: conversions that do not fit: {listed(kinds)}")

    @unittest.skipIf(SANITIZED, "a sanitizer wants to be the first library")
    def test_a_disk_that_fails_leaves_nothing(self):
        def fails_after(count):
            self.refused(self.folder / f"{count}.safetensors",
                         with_library(self.folder, count, EIO.replace("LEFT", str(count))))

        counts = [*range(0, 600_000, 60_000), 1 << 30]  # the last one only fails to sync
        in_parallel(fails_after, counts)
        print(f"row 8: {len(counts)} conversions with EIO")

    def test_a_recorder_stops_with_one_warning_and_serving_goes_on(self):
        kinds = collections.Counter()

        def record(folder, before=()):
            with Server("--record", str(folder), before=before) as server:
                client = Socket(server.port)
                for _ in range(12):
                    self.assertEqual(client.ask()[0], 2)
                self.assertEqual(server.stop(), 0)
                said = "".join(server.log)
                self.assertEqual(said.count("recording stopped, serving goes on"), 1, said)

        def on_disk(kib):
            with small_disk(self.folder, kib) as folder:
                if folder:
                    record(folder)
                    kinds["small disks"] += 1

        def with_limit(limit):
            record(self.folder / f"limit{limit}", limited(limit))
            kinds["limits of a file's size"] += 1

        in_parallel(on_disk, range(4, 244, 12))
        in_parallel(with_limit, range(0, 240_000, 12_000))
        print(f"row 8: recorders that ran out of room: {listed(kinds)}")


if __name__ == "__main__":
    sys.exit(run_tests())
