"""The command in a hostile world, without its disk: little memory, ports that cannot be had, wrong
configurations, words that want to look like the log's own.

    hostile_process_test.py TENDON [--sanitized]
"""
import collections
import json
import re
import socket
import sys
import unittest

from environment import FLOWER, ends, printed, run_tests, tendon
from hostile_test import SANITIZED, WithCheckpoint, in_parallel, listed, measured
from policy_server import ALOHA, GREY, REQUEST, WITHOUT_PROMPT, Server, Socket, array, with_keys

MIDDLE = {"vlm": {"width": 1024, "mlp": 4096, "heads": 4, "kv_heads": 1, "head_dim": 64,
                  "depth": 6, "vocab": 512},
          "expert": {"width": 512, "mlp": 1024, "heads": 4, "kv_heads": 1, "head_dim": 64,
                     "depth": 6}}  # 200 MB


def plan_bytes(model):
    return printed("inspect", *model)["memory_bytes"]["total"]


class LittleMemory(WithCheckpoint):
    """Row 9."""

    def test_a_plan_beyond_the_budget_is_refused(self):
        packed = self.folder / "packed.safetensors"
        ends(0, "", "convert", *self.opened, packed)
        scene = ("--prompt", "go", "--state", ",".join(["0"] * 14), "--image",
                 f"base_0_rgb={FLOWER}")
        cases = [(model, given, percent)
                 for model, given in ((("demo",), ()), (ALOHA, ()), (self.opened, scene),
                                      (("synthetic:pi05-small",), ()), ((packed,), scene))
                 for percent in (50, 80, 95, 100, 110)]

        def run(case):
            model, given, percent = case
            budget = plan_bytes(model) * percent // 100
            expected = (0, "") if percent >= 100 else (6, "--max-memory allows")
            ends(*expected, "run", *model, *given, "--max-memory", budget)

        in_parallel(run, cases, 2)
        print(f"row 9: {len(cases)} runs of five models at 50 to 110 % of the plan")

    def test_a_refused_plan_has_not_touched_a_weight(self):
        plan = plan_bytes(("synthetic:pi0",))
        code, said, seconds, mib = measured("serve", "synthetic:pi0", "--port", "0",
                                            "--admin-port", "0", "--max-memory", plan * 95 // 100)
        self.assertEqual(code, 6, said)
        if not SANITIZED:
            self.assertLess(mib, 64)
        print(f"row 9: {plan / 1e9:.1f} GB refused in {seconds:.2f} s and {mib:.0f} MiB")

    @unittest.skipIf(SANITIZED, "a sanitizer's own memory is in no plan")
    def test_the_plan_is_what_it_takes(self):
        config = self.folder / "middle.json"
        config.write_text(json.dumps(MIDDLE))
        model = ("synthetic:pi0-small", "--config", config)
        plan = plan_bytes(model) / (1 << 20)
        alone = measured("run", "demo", "--steps", "1")[3]
        code, said, _, mib = measured("run", *model, "--steps", "1", "--prompt", "x")
        self.assertEqual(code, 0, said)
        self.assertLess(mib - alone, plan)
        print(f"row 9: a plan of {plan:.0f} MiB took {mib - alone:.0f} MiB more than the demo")

    @unittest.skipIf(SANITIZED, "a sanitizer reserves terabytes")
    def test_a_small_address_space_is_said_and_no_crash(self):
        outcomes = collections.Counter()

        def run(mib):
            before = ("prlimit", f"--as={mib << 20}")
            if tendon("version", before=before).returncode != 0:
                outcomes["not even loaded"] += 1
                return
            done = tendon("run", "demo", "--threads", "4", "--steps", "1", before=before)
            self.assertIn(done.returncode, (0, 6), f"{mib} MiB: {done.stderr}")
            if done.returncode == 6:
                self.assertIn("memory", done.stderr)
            outcomes["works" if done.returncode == 0 else "refused"] += 1

        in_parallel(run, range(8, 200, 4), 2)
        self.assertGreater(outcomes["works"], 0)
        print(f"row 9: address spaces of 8 to 196 MiB: {listed(outcomes)}")


class Ports(unittest.TestCase):
    def test_that_cannot_be_had_say_what_to_do(self):  # row 28
        long_path = "/tmp/" + "x" * 120
        with Server() as server, socket.socket(socket.AF_INET6) as six, socket.socket() as four:
            four.bind(("0.0.0.0", 0))
            four.listen()
            everywhere = four.getsockname()[1]
            cases = [
                (["--port", server.port], "--port"),
                (["--port", server.admin], "--port"),
                (["--admin-port", server.admin], "--admin-port"),
                (["--admin-port", everywhere], "--admin-port"),
                (["--port", everywhere], "--port"),
                (["--host", "203.0.113.1"], "127.0.0.1"),
                (["--host", "2001:db8::1"], "127.0.0.1"),
                (["--host", "nowhere.invalid"], "127.0.0.1"),
                (["--host", "127.0.0.1:80"], "127.0.0.1"),
                (["--admin-host", "300.1.1.1"], "127.0.0.1"),
                (["--notify-socket", long_path], "shorter"),
            ]
            try:
                six.bind(("::1", 0))
                six.listen()
                cases.append((["--host", "::1", "--port", six.getsockname()[1]], "--port"))
            except OSError as error:
                print(f"row 28: no IPv6 here ({error})")
            for arguments, word in cases:
                free = [x for option in ("--port", "--admin-port") if option not in arguments
                        for x in (option, "0")]
                done = ends(7, word, "serve", "demo", *arguments, *free)
                if arguments[0] == "--host" and word != "--port":
                    self.assertIn(arguments[1], done.stderr)
        print(f"row 28: {len(cases)} ports, addresses and paths")


def misspelt(word):
    return word[:-2] + word[-1] + word[-2] if word[-1] != word[-2] else word + "x"


TOWER = ("width", "mlp", "heads", "kv_heads", "head_dim", "depth")
KEYS = {"": ("policy", "action_dim", "state_dim", "horizon", "num_steps", "max_token_len",
             "cameras", "min_period", "max_period"),
        "vision": ("image", "patch", "width", "heads", "mlp", "depth"),
        "vlm": (*TOWER, "vocab"), "expert": TOWER}
NO_CONFIGURATIONS = {
    "nothing": b"", "no JSON": b"{", "a list": b"[]", "a number": b"7", "zeros": bytes(100),
    "not UTF-8": b'{"policy":"\xff"}', "NaN": b'{"horizon":NaN}', "1e400": b'{"horizon":1e400}',
    "nesting": b'{"vision":' + b"[" * 100_000, "16 MiB": b" " * (16 << 20),
}


class Configurations(WithCheckpoint):
    """Row 32."""

    def refused(self, content, word):
        config = self.folder / f"{abs(hash(content))}.json"
        config.write_bytes(content)
        ends(2, word, "inspect", "synthetic:pi0-small", "--config", config)
        config.unlink()

    def test_with_unknown_keys_or_wrong_types_say_what_is_known(self):
        spelled, typed = [], []
        for room, keys in KEYS.items():
            for key in keys:
                wrong = {misspelt(key): 1}
                spelled.append((wrong if not room else {room: wrong}, f"nearest: '{key}'"))
                for value in ("three", True, None, [3], {"a": 3}, 1.5):
                    if key.endswith("period") and value == 1.5:
                        continue
                    typed.append(({key: value} if not room else {room: {key: value}}, key))
        in_parallel(lambda case: self.refused(json.dumps(case[0]).encode(), case[1]),
                    spelled + typed)
        for content in NO_CONFIGURATIONS.values():
            self.refused(content, ".json")
        for path in (self.folder, "/dev/zero", "no/such/file.json"):
            ends(2, "", "inspect", "synthetic:pi0-small", "--config", path)
        print(f"row 32: {len(spelled)} unknown keys, {len(typed)} wrong types, "
              f"{len(NO_CONFIGURATIONS)} files that are none")

    def test_of_the_command_line_say_the_nearest_option(self):
        names = re.findall(r"--[a-z-]{5,}", tendon("serve", "-h").stdout)
        names = sorted(set(names) - {"--help"})
        self.assertGreater(len(names), 20)

        in_parallel(lambda name: ends(2, f"nearest: '{name}'", "serve", "demo", misspelt(name)),
                    [name for name in names if misspelt(name) not in names])
        wrong = [("--port", "x"), ("--port", "70000"), ("--port", "-1"), ("--threads", "many"),
                 ("--max-memory", "lots"), ("--seed", "-1.5"), ("--max-clients", "0"),
                 ("--silence-s", "long"), ("--guard-factor", "x"), ("--max-message", "-")]
        for option, value in wrong:
            ends(2, option, "serve", "demo", option, value)
        print(f"row 32: {len(names)} misspelt options, {len(wrong)} wrong values")

    def test_of_the_environment_change_nothing(self):
        hostile = ("env", "-i", "TENDON_BACKEND=cuda", "TENDON_THREADS=x", "OMP_NUM_THREADS=-1",
                   "LC_ALL=de_DE.UTF-8", "TMPDIR=/no/such", "HOME=/no/such", "COLUMNS=1")
        plain, other = (printed("run", "demo", "--steps", "1", before=before)["actions"]
                        for before in ((), hostile))
        self.assertEqual(plain, other)
        print("row 32: a hostile environment, the same actions")


class Logs(unittest.TestCase):
    def test_show_no_line_and_no_escape_of_a_peer(self):  # row 21
        forged = "\n00:00:00 X\r\x1b[2J"
        requests = [
            with_keys(REQUEST, {f"observation.images.{forged[:11]}": GREY}),
            with_keys(WITHOUT_PROMPT, {"prompt": array(b"\n\x1b1", [1], b"x")}),
            with_keys(WITHOUT_PROMPT, {"prompt": bytes([0xa0 + len(forged)]) + forged.encode()}),
            with_keys(REQUEST, {forged: b"\xc0", "request_id": b"\xa2\n\x1b"}),
            forged.encode(), b"\xd9\x13" + forged.encode(), b"\x81\xb3" + forged.encode() + b"\xc1",
        ]
        with Server() as server:
            client = Socket(server.port)
            refused = sum(client.ask(request)[0] == 1 for request in requests)
            with self.assertRaisesRegex(ConnectionError, "HTTP"):
                Socket(server.port, "Origin: \x1b[2J\r\nX-Forwarded-For: \x1b[31m\r\n")
            self.assertEqual(server.stop(), 0)
            for line in "".join(server.log).split("\n")[:-1]:
                self.assertNotRegex(line, "[\x00-\x1f\x7f]|^00:00:00 X")
        self.assertGreater(refused, 3)
        print(f"row 21: {len(requests)} requests that forge log lines, {refused} refused")


if __name__ == "__main__":
    sys.exit(run_tests())
