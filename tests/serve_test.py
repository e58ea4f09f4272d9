"""`tendon serve` and `tendon replay` as their users run them: the real binary, the demo, and where
openpi's recorded request of an ALOHA robot is sent, a synthetic model for that robot.

    serve_test.py TENDON PROTOCOL_FOLDER
"""
import json
import pathlib
import re
import signal
import socket
import struct
import sys
import time

from environment import WithFolder, ends, printed, run_tests, tendon
from policy_server import (ALOHA, GREY, REQUEST, STATE, WITHOUT_PROMPT, Server, Socket, with_keys,
                           with_library)

MESSAGES = pathlib.Path(sys.argv[2]) / "messages"
ALOHA_REQUEST = (MESSAGES / "request_aloha.bin").read_bytes()


def batch(*requests):
    return b"\x81\xa5batch" + bytes([0x90 + len(requests)]) + b"".join(requests)


def memory_of(pid):
    """(bytes of its own, bytes that others map as well), as the kernel counts pages."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return tuple(1024 * (kib[f"{kind}_Clean"] + kib[f"{kind}_Dirty"])
                 for kind in ("Private", "Shared"))


def actions(reply):
    at = reply.index(b"data\xc5")
    size = struct.unpack(">H", reply[at + 5:at + 7])[0]
    return reply[at + 7:at + 7 + size]


class Serve(WithFolder):
    def test_answers_openpis_request_and_reports(self):
        with Server(model=ALOHA) as server:
            client = Socket(server.port)
            self.assertIn(b"action_names", client.greeting)
            kind, reply = client.ask(ALOHA_REQUEST)
            self.assertEqual(kind, 2)
            self.assertEqual(reply[1:9], b"\xa7actions")
            self.assertEqual(client.ask((MESSAGES / "request_missing_keys.bin").read_bytes())[0], 1)
            self.assertEqual(actions(client.ask(ALOHA_REQUEST)[1]), actions(reply))
            status = json.loads(server.get("/status"))
            self.assertEqual(status["state"], "ready")
            self.assertEqual(status["requests"]["answered"], 2)
            self.assertEqual(status["requests"]["refused"], 1)
            self.assertTrue(status["model"]["demo"])
            self.assertEqual(len(status["chunk"]["values"]), status["model"]["horizon"])
            metrics = server.get("/metrics")
            self.assertIn('tendon_requests_total{outcome="answered"} 2\n', metrics)
            for line in metrics.splitlines():
                self.assertRegex(line, r'^(# (HELP|TYPE) \w+ .+|\w+(\{.*\})? [-+.\de]+)$')
            self.assertIn("<html", server.get("/"))
            self.assertEqual(server.get("/healthz", server.port), "OK\n")
            self.assertEqual(server.stop(), 0)
            self.assertIn("connected from 127.0.0.1", "".join(server.log))
            self.assertEqual("".join(server.log).count("--no-adapt-to-pi"), 1)

    def test_the_demo_takes_the_observation_of_its_table(self):
        with Server() as server:
            client = Socket(server.port)
            self.assertIn(b"\xa5robot\xa7lerobot", client.greeting)
            kind, reply = client.ask()
            self.assertEqual(kind, 2, reply)
            self.assertIn(b"shape\x92\x0a\x03", reply)
            for bad, word in [(ALOHA_REQUEST, "cam_high"), (WITHOUT_PROMPT, "--default-prompt")]:
                kind, text = client.ask(bad)
                self.assertEqual(kind, 1)
                self.assertIn(word, text.decode())
            model = json.loads(server.get("/status"))["model"]
            self.assertEqual((model["robot"], model["cameras"]), ("lerobot", ["top", "gripper"]))
            self.assertTrue(model["demo"])
            self.assertIn(b"\xabfingerprint\xb0" + model["fingerprint"].encode(), client.greeting)

    def test_the_demo_acts_behind_a_server_as_without(self):
        with Server() as server:
            rows = [printed("demo", *where, "--episodes", "1")["rows"]
                    for where in ((), ("--url", f"ws://127.0.0.1:{server.port}"))]
        self.assertEqual(*rows)

    def test_interrupt_gives_130(self):
        with Server() as server:
            self.assertEqual(server.stop(signal.SIGINT), 130)

    def test_what_cannot_be_served_says_what_to_do(self):
        for arguments, code, word in [
                (["/no/such/model"], 3, "/no/such/model"),
                (["demo", "--dialect", "x"], 2, "roboarena"),
                (["demo", "--dialect", "vla-eval", "--rtc"], 2, "--rtc"),
                (["demo", "--chunk-steps", "3"], 2, "--dialect vla-eval"),
                (["demo", "--api-key-file", "/no/such/file"], 2, "/no/such/file"),
                ([*ALOHA, "--guard-factor", "2"], 2, "q01"),
                (["demo", "--robot", "droid"], 2, "names its own cameras"),
                (["demo", "--record", "/proc/nowhere"], 2, "/proc/nowhere")]:
            ends(code, word, "serve", *arguments, "--port", "0", "--admin-port", "0")

    def test_a_certificate_is_for_one_model(self):
        file, page = self.folder / "demo.json", self.folder / "demo.html"
        ends(0, "verdict: passed", "certify", "demo", "--count", "1", "--out", file, "--html",
             page)
        self.assertIn("</html>", page.read_text())
        with Server("--certificate", file) as server:
            self.assertEqual(server.stop(), 0)
        for arguments, code, word in [
                (["demo:pi05", "--certificate", file], 1, "the weights"),
                (["demo", "--precision", "int8", "--certificate", file], 1, "the precision"),
                (["demo", "--certificate", page], 2, "no certificate")]:
            ends(code, word, "serve", *arguments, "--port", "0", "--admin-port", "0")

    def test_what_robots_saw_can_be_certified(self):
        with Server("--record", self.folder) as server:
            Socket(server.port).ask(REQUEST)
            twice = with_keys(REQUEST, {"num_samples": b"\x02"})
            Socket(server.port).ask(batch(twice, REQUEST))
            server.stop()
        said = printed("certify", "demo", "--observations", self.folder, "--count", "9")
        self.assertEqual(said["observations"], "3 recorded observations")
        done = tendon("validate", "demo", "--loss", self.folder, "--json")
        self.assertEqual(json.loads(done.stdout)["flow_matching"]["examples"], 3)
        # Chunks of several draws and of a batch.
        self.assertEqual(printed("replay", self.folder, "demo", "--tolerance", "0")["equal"], 4)
        for options, word in [(["--observations", "/proc"], "no recording with actions"),
                              (["--against", "lerobot"], "examples/certify.py"),
                              (["--count", "0"], "1 or more")]:
            self.assertIn(word, tendon("certify", "demo", *options).stderr)

    def test_api_keys_and_browsers(self):
        key = self.folder / "key"
        key.write_text("not-a-secret\n")
        with Server("--api-key-file", str(key), "--allow-origin", "http://lab") as server:
            for headers, answer in [
                    ("", " 401 "), ("Authorization: Api-Key not-a\r\n", " 401 "),
                    ("Authorization: Api-Key not-a-secret2\r\n", " 401 "),
                    ("Authorization: Api-Key not-a-secret\r\nOrigin: http://x\r\n", " 403 ")]:
                with self.assertRaisesRegex(ConnectionError, answer):
                    Socket(server.port, headers)
            Socket(server.port, "Authorization: Api-Key not-a-secret\r\nOrigin: http://lab\r\n")
            server.stop()
            self.assertNotIn("not-a", "".join(server.log))

    def test_recordings_survive_being_killed_and_replay_bit_for_bit(self):
        with Server("--record", self.folder, "--fresh-noise", "--seed", "9", model=ALOHA) as server:
            client = Socket(server.port)
            replies = {actions(client.ask(ALOHA_REQUEST)[1]) for _ in range(5)}
            self.assertEqual(len(replies), 5)  # fresh noise
            client.ask((MESSAGES / "request_missing_keys.bin").read_bytes())
            time.sleep(0.2)
            self.assertEqual(server.stop(signal.SIGKILL), -9)
        recording = next(self.folder.iterdir())
        with open(recording, "ab") as torn:
            torn.write(ALOHA_REQUEST[:1000])
        done = ends(0, "dropped", "replay", self.folder, *ALOHA, "--json", "--tolerance", "0")
        result = json.loads(done.stdout)
        self.assertEqual((result["requests"], result["equal"]), (6, 5))
        with Server(model=ALOHA) as server:
            result = printed("replay", self.folder, "--url", f"ws://127.0.0.1:{server.port}")
            self.assertEqual(result["equal"], 5)
        ends(1, "recorded with another model", "replay", self.folder, *ALOHA, "--weights-seed", "1",
             "--tolerance", "0")

    def test_a_new_chunk_continues_the_previous_one(self):
        def distance(a, b):
            pairs = zip(struct.unpack("<56d", a[:448]), struct.unpack("<56d", b[:448]))
            return sum((x - y) ** 2 for x, y in pairs) ** 0.5  # over the first four rows

        asked = with_keys(ALOHA_REQUEST, {"seed": b"\x07"})
        with Server("--rtc", model=ALOHA) as server:
            client = Socket(server.port)
            before = actions(client.ask(ALOHA_REQUEST)[1])
            guided = client.ask(with_keys(asked, {
                "actions_consumed": b"\x00", "inference_delay": b"\x04"}))[1]
            self.assertIn(b"\xafinference_delay\x04", guided)
            free = distance(actions(client.ask(asked)[1]), before)
            self.assertLess(distance(actions(guided), before), 0.5 * free)

    def test_what_is_not_as_it_should_be_is_said_once_per_connection(self):
        blind = with_keys(b"\x80", {"observation.images.top": GREY,
                                    "observation.state": STATE, "prompt": b"\xa4push"})
        third = with_keys(REQUEST, {"observation.images.side": GREY})
        with Server() as server:
            for _ in range(2):
                client = Socket(server.port)
                for message in (blind, third, blind, third):
                    kind, reply = client.ask(message)
                    self.assertEqual(kind, 2, reply)
            warnings = json.loads(server.get("/status"))["warnings"]
            self.assertTrue(any("camera 'gripper' is absent" in each["text"] for each in warnings),
                            warnings)
            self.assertEqual(server.stop(), 0)
            said = [line for line in server.log if ": warning: " in line]
            self.assertEqual(len(said), 4, said)
            self.assertEqual(sum("camera 'gripper' is absent" in line for line in said), 2, said)
            self.assertEqual(sum("not used" in line and "'side'" in line for line in said), 2, said)

    def test_roboarenas_clients_get_bare_actions(self):
        request = with_keys((MESSAGES / "request_droid.bin").read_bytes(),
                            {"endpoint": b"\xa5infer"})
        with Server("--config", "pi05_droid", "--dialect", "roboarena",
                    model=("synthetic:pi05-small",)) as server:
            client = Socket(server.port)
            self.assertIn(b"needs_wrist_camera", client.greeting)
            kind, reply = client.ask(request)
            self.assertEqual(kind, 2, reply)
            self.assertTrue(reply.startswith(b"\x84\xc4\x0b__ndarray__"))
            self.assertIn(b"<f4", reply)
            self.assertEqual(client.ask(b"\x81\xa8endpoint\xa5reset"), (1, b"reset successful"))

    def test_servers_of_one_converted_file_have_its_weights_once(self):
        config, file = self.folder / "sizes.json", self.folder / "m.safetensors"
        config.write_text(json.dumps({
            "num_steps": 1, "expert": {"depth": 4, "width": 640},
            "vlm": {"depth": 4, "width": 512, "mlp": 4096, "vocab": 20000}}))
        plain = ("synthetic:pi05-small", "--config", config)  # its norms are large, too
        ends(0, "", "convert", *plain, file)
        size = file.stat().st_size
        self.assertGreater(size, 70e6)
        with Server(model=[file]) as one, Server(model=[file]) as other, Server(
                model=plain) as unshared:
            for server in (one, other):
                private, shared = memory_of(server.process.pid)
                self.assertLess(private, size / 3)
                self.assertGreater(shared, size / 2)
                said = json.loads(server.get("/status"))["memory"]
                self.assertAlmostEqual(said["private_bytes"], private, delta=size / 20)
                self.assertAlmostEqual(said["shared_bytes"], shared, delta=size / 5)
                self.assertIn('tendon_memory_bytes{kind="private"}', server.get("/metrics"))
            self.assertGreater(memory_of(unshared.process.pid)[0], 0.6 * size)
            facts = printed("doctor")["machine"]
            found = next(f["found"] for f in facts if f["what"] == "tendon processes")
            count, together = re.match(r"(\d+), ([\d.]+) GB together", found).groups()
            self.assertGreaterEqual(int(count), 3, found)
            self.assertGreater(float(together), 1.5 * size / 1e9, found)

    def test_a_watchdog_and_a_ready_message_reach_systemd(self):
        path = str(self.folder / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(path)
            systemd.settimeout(10)
            with Server("--notify-socket", path) as server:
                got = {systemd.recv(100) for _ in range(2)}
                self.assertEqual(got, {b"READY=1", b"WATCHDOG=1"})
                server.stop()

    def test_a_wall_clock_that_jumps_changes_nothing(self):
        preloaded = with_library(self.folder, "clock", """
            #define _GNU_SOURCE
            #include <sys/syscall.h>
            #include <time.h>
            #include <unistd.h>
            int clock_gettime(clockid_t id, struct timespec* at) {
              static int calls;
              int result = (int)syscall(SYS_clock_gettime, id, at);
              if (id == CLOCK_REALTIME) at->tv_sec += ++calls % 2 ? 3600 : -3600;
              return result;
            }""")
        with Server("--max-observation-age-ms", "100", before=preloaded) as server:
            client = Socket(server.port)
            for _ in range(20):
                self.assertEqual(client.ask()[0], 2)
            for client in json.loads(server.get("/status"))["clients"]:
                self.assertLess(client["idle_s"], 60)
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    sys.exit(run_tests())
