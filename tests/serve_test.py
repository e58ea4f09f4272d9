"""`tendon serve` and `tendon replay` as their users run them: the real binary, the demo, and where
openpi's recorded request of an ALOHA robot is sent, a synthetic model for that robot.

    serve_test.py TENDON PROTOCOL_FOLDER
"""
import base64
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

from environment import memory_was_bounded, tendon

TENDON = sys.argv[1]
MESSAGES = pathlib.Path(sys.argv[2]) / "messages"
ALOHA = ("synthetic:pi0-small", "--robot", "aloha")
ALOHA_REQUEST = (MESSAGES / "request_aloha.bin").read_bytes()


def batch(*requests):
    return b"\x81\xa5batch" + bytes([0x90 + len(requests)]) + b"".join(requests)


def with_keys(request, keys):
    """The request with more keys, whose values are msgpack already."""
    added = b"".join(bytes([0xa0 + len(key)]) + key.encode() + value for key, value in keys.items())
    return bytes([request[0] + len(keys)]) + request[1:] + added


def array(dtype, shape, data):
    """A small NumPy array as openpi's client packs it."""
    return (b"\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc5" + struct.pack(">H", len(data)) + data +
            b"\xc4\x05dtype\xc4\x03" + dtype +
            b"\xc4\x05shape" + bytes([0x90 + len(shape), *shape]))


GREY = array(b"|u1", [63, 63, 3], b"\x80" * (63 * 63 * 3))
STATE = array(b"<f8", [3], struct.pack("<3d", 0.5, 0.5, 1))
WITHOUT_PROMPT = with_keys(b"\x80", {
    "observation.images.top": GREY, "observation.images.gripper": GREY,
    "observation.state": STATE})
REQUEST = with_keys(WITHOUT_PROMPT, {"prompt": b"\xb2reach the red disc"})


def memory_of(pid):
    """(bytes of its own, bytes that others map as well), as the kernel counts pages."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return tuple(1024 * (kib[f"{kind}_Clean"] + kib[f"{kind}_Dirty"])
                 for kind in ("Private", "Shared"))


class Socket:
    """The least of a websocket client: one binary message out, one message in."""

    def __init__(self, port, headers=""):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                             f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                             f"Sec-WebSocket-Version: 13\r\n{headers}\r\n").encode())
        self.head = b""
        while b"\r\n\r\n" not in self.head:
            got = self.socket.recv(1)
            if not got:
                raise ConnectionError(self.head.decode())
            self.head += got
        if b" 101 " not in self.head:
            raise ConnectionError(self.head.decode())
        self.greeting = self.receive()[1]

    def send(self, message):
        size = (bytes([0x80 | len(message)]) if len(message) < 126 else
                b"\xfe" + struct.pack(">H", len(message)) if len(message) < 65536 else
                b"\xff" + struct.pack(">Q", len(message)))
        self.socket.sendall(b"\x82" + size + bytes(4) + message)  # a mask of zeros

    def exactly(self, count):
        data = b""
        while len(data) < count:
            got = self.socket.recv(count - len(data))
            if not got:
                raise ConnectionError("closed")
            data += got
        return data

    def receive(self):
        first, second = self.exactly(2)
        size = second & 127
        if size == 126:
            size = struct.unpack(">H", self.exactly(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self.exactly(8))[0]
        return first & 15, self.exactly(size)

    def ask(self, message=REQUEST):
        self.send(message)
        return self.receive()


class Server:
    """A running `tendon serve`; what it prints is read all the time, so that it never waits."""

    def __init__(self, *options, model=("demo",), before=(), port=0, admin=0, wait=True):
        threads = () if "--threads" in options else ("--threads", "1")
        self.process = subprocess.Popen(
            [*before, TENDON, "serve", *map(str, model), "--port", str(port), "--admin-port",
             str(admin), *threads, *map(str, options)], stderr=subprocess.PIPE, text=True)
        self.log, self.port, self.admin = [], None, None
        self.told = threading.Event()  # that it serves, or all that it ever said
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        if wait:
            self.wait_until_ready()

    def read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"policy ws://[^:]+:(\d+) · page http://[^:]+:(\d+)/", line)
            if found:
                self.port, self.admin = int(found[1]), int(found[2])
                self.told.set()
        self.told.set()

    def wait_until_ready(self):
        self.told.wait(120)
        if not self.port:
            raise AssertionError(f"exit code {self.process.wait(10)}: {self.log}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.wait()

    def wait(self):
        """The exit code; then the log is complete."""
        code = self.process.wait(timeout=10)
        self.reader.join()
        return code

    def stop(self, *signals):
        for each in signals or (signal.SIGTERM,):
            self.process.send_signal(each)
            time.sleep(0.05)
        return self.wait()

    def get(self, path, port=None):
        url = f"http://127.0.0.1:{port or self.admin}{path}"
        return urllib.request.urlopen(url, timeout=10).read().decode()


def with_library(folder, name, source):
    """What stands before a command that is to run with this C code instead of the C library's."""
    file = pathlib.Path(folder, f"{name}.c")
    file.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", file.with_suffix(".so"), file], check=True)
    return "env", f"LD_PRELOAD={file.with_suffix('.so')}"


def actions(reply):
    at = reply.index(b"data\xc5")
    size = struct.unpack(">H", reply[at + 5:at + 7])[0]
    return reply[at + 7:at + 7 + size]


class Serve(unittest.TestCase):
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
        def episode(*where):
            done = tendon("demo", *where, "--episodes", "1", "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout)["rows"]

        with Server() as server:
            self.assertEqual(episode("--url", f"ws://127.0.0.1:{server.port}"), episode())

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
            done = tendon("serve", *arguments, "--port", "0", "--admin-port", "0")
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(word, done.stderr)

    def test_a_certificate_is_for_one_model(self):
        with tempfile.TemporaryDirectory() as folder:
            file, page = pathlib.Path(folder, "demo.json"), pathlib.Path(folder, "demo.html")
            done = tendon("certify", "demo", "--count", "1", "--out", file, "--html", page)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("verdict: passed", done.stdout)
            self.assertIn("</html>", page.read_text())
            with Server("--certificate", file) as server:
                self.assertEqual(server.stop(), 0)
            for arguments, code, word in [
                    (["demo:pi05", "--certificate", file], 1, "the weights"),
                    (["demo", "--precision", "int8", "--certificate", file], 1, "the precision"),
                    (["demo", "--certificate", page], 2, "no certificate")]:
                done = tendon("serve", *arguments, "--port", "0", "--admin-port", "0")
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(word, done.stderr)

    def test_what_robots_saw_can_be_certified(self):
        with tempfile.TemporaryDirectory() as folder:
            with Server("--record", folder) as server:
                Socket(server.port).ask(REQUEST)
                twice = with_keys(REQUEST, {"num_samples": b"\x02"})
                Socket(server.port).ask(batch(twice, REQUEST))
                server.stop()
            done = tendon("certify", "demo", "--observations", folder, "--count", "9", "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(json.loads(done.stdout)["observations"], "3 recorded observations")
            done = tendon("validate", "demo", "--loss", folder, "--json")
            self.assertEqual(json.loads(done.stdout)["flow_matching"]["examples"], 3)
            for options, word in [(["--observations", "/proc"], "no recording with actions"),
                                  (["--against", "lerobot"], "examples/certify.py"),
                                  (["--count", "0"], "1 or more")]:
                self.assertIn(word, tendon("certify", "demo", *options).stderr)

    def test_api_keys_and_browsers(self):
        with tempfile.TemporaryDirectory() as folder:
            key = pathlib.Path(folder, "key")
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
        with tempfile.TemporaryDirectory() as folder:
            with Server("--record", folder, "--fresh-noise", "--seed", "9", model=ALOHA) as server:
                client = Socket(server.port)
                replies = {actions(client.ask(ALOHA_REQUEST)[1]) for _ in range(5)}
                self.assertEqual(len(replies), 5)  # fresh noise
                client.ask((MESSAGES / "request_missing_keys.bin").read_bytes())
                time.sleep(0.2)
                self.assertEqual(server.stop(signal.SIGKILL), -9)
            recording = next(pathlib.Path(folder).iterdir())
            with open(recording, "ab") as torn:
                torn.write(ALOHA_REQUEST[:1000])
            done = tendon("replay", folder, *ALOHA, "--json", "--tolerance", "0")
            self.assertEqual(done.returncode, 0, done.stderr)
            result = json.loads(done.stdout)
            self.assertEqual((result["requests"], result["equal"]), (6, 5))
            self.assertIn("dropped", done.stderr)
            with Server(model=ALOHA) as server:
                done = tendon("replay", folder, "--url", f"ws://127.0.0.1:{server.port}", "--json")
                self.assertEqual(json.loads(done.stdout)["equal"], 5, done.stderr)
            done = tendon("replay", folder, *ALOHA, "--weights-seed", "1", "--tolerance", "0")
            self.assertEqual(done.returncode, 1, done.stdout)
            self.assertIn("recorded with another model", done.stderr)

    def test_equal_requests_give_equal_bytes_with_any_threads_and_after_a_restart(self):
        answers = set()
        for threads in ("1", "2", "4", "1"):
            with Server("--threads", threads, model=ALOHA) as server:
                client = Socket(server.port)
                answers |= {actions(client.ask(ALOHA_REQUEST)[1]) for _ in range(20)}
        self.assertEqual(len(answers), 1)

    def test_a_new_chunk_continues_the_previous_one(self):
        def distance(a, b):
            pairs = zip(struct.unpack("<56d", a[:448]), struct.unpack("<56d", b[:448]))
            return sum((x - y) ** 2 for x, y in pairs) ** 0.5  # over the first four rows

        with Server("--rtc", model=ALOHA) as server:
            client = Socket(server.port)
            before = client.ask(ALOHA_REQUEST)[1]
            array = before[9:before.index(b"\xadpolicy_timing")]
            other = client.ask(with_keys(ALOHA_REQUEST, {"seed": b"\x07"}))[1]
            guided = client.ask(with_keys(ALOHA_REQUEST, {
                "seed": b"\x07", "prev_chunk": array, "inference_delay": b"\x04"}))[1]
            self.assertIn(b"\xafinference_delay\x04", guided)
            free = distance(actions(other), actions(before))
            self.assertLess(distance(actions(guided), actions(before)), 0.5 * free)
            # The server kept the last chunk, the guided one.
            kept = client.ask(with_keys(ALOHA_REQUEST, {
                "seed": b"\x09", "actions_consumed": b"\x00", "inference_delay": b"\x04"}))[1]
            self.assertLess(distance(actions(kept), actions(guided)), 0.5 * free)

    def test_a_batch_and_several_draws_are_the_single_calls_in_one_message(self):
        def seeded(seed, request=ALOHA_REQUEST):
            return with_keys(request, {"seed": bytes([seed])})

        def chunks(reply):
            """The actions of each reply in a list."""
            count, parts = reply[0] - 0x90, reply.split(b"\xa7actions")[1:]
            self.assertEqual(len(parts), count)
            return [actions(part) for part in parts]

        with tempfile.TemporaryDirectory() as folder:
            with Server("--record", folder, model=ALOHA) as server:
                client = Socket(server.port)
                single = [actions(client.ask(seeded(s))[1]) for s in (1, 2, 3)]
                self.assertEqual(len(set(single)), 3)
                kind, reply = client.ask(batch(seeded(3), seeded(1), seeded(3)))
                self.assertEqual(kind, 2, reply)
                self.assertEqual(chunks(reply), [single[2], single[0], single[2]])
                draws = with_keys(seeded(1), {"num_samples": b"\x03"})
                self.assertEqual(chunks(client.ask(draws)[1]), single)
                self.assertEqual(chunks(client.ask(batch(draws, seeded(1)))[1]),
                                 single + single[:1])
                kind, text = client.ask(batch(seeded(1), with_keys(ALOHA_REQUEST,
                                                                   {"seed": b"\xff"})))
                self.assertEqual(kind, 1)
                self.assertIn(b"row 1 of 'batch': 'seed' is -1", text)
                self.assertEqual(actions(client.ask(seeded(1))[1]), single[0])
                self.assertEqual(server.stop(), 0)
            done = tendon("replay", folder, *ALOHA, "--json", "--tolerance", "0")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(json.loads(done.stdout)["equal"], 3 + 3 + 3 + 4 + 1)

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
        with tempfile.TemporaryDirectory() as folder:
            config, file = (pathlib.Path(folder, name) for name in ("sizes.json", "m.safetensors"))
            config.write_text(json.dumps({
                "num_steps": 1, "expert": {"depth": 4, "width": 640},
                "vlm": {"depth": 4, "width": 512, "mlp": 4096, "vocab": 20000}}))
            plain = ("synthetic:pi05-small", "--config", config)  # its norms are large, too
            done = tendon("convert", *plain, file)
            self.assertEqual(done.returncode, 0, done.stderr)
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
                facts = json.loads(tendon("doctor", "--json").stdout)["machine"]
                found = next(f["found"] for f in facts if f["what"] == "tendon processes")
                count, together = re.match(r"(\d+), ([\d.]+) GB together", found).groups()
                self.assertGreaterEqual(int(count), 3, found)
                self.assertGreater(float(together), 1.5 * size / 1e9, found)

    def test_prompts_of_every_kind(self):
        def ask(prompt):
            text = b"\xdb" + struct.pack(">I", len(prompt))
            before, after = REQUEST.split(b"\xa6prompt", 1)
            self.assertLess(after[0] - 0xa0, 32)
            return client.ask(before + b"\xa6prompt" + text + prompt + after[1 + after[0] - 0xa0:])

        with Server() as server:
            client = Socket(server.port)
            for good in ("fold", "\0 fold", "\u202efold", "\U0001f469\u200d\U0001f467 fold",
                         "e" + "\u0301" * 5000, "\U0010fffd\U00020000", "fold " * 200_000):
                self.assertEqual(ask(good.encode())[0], 2, good[:20])
            for bad in (b"", b" \n", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xff"):
                kind, text = ask(bad)
                self.assertEqual(kind, 1, bad)
                self.assertRegex(text.decode(), "prompt is empty|not UTF-8|UTF-8")
            warnings = json.loads(server.get("/status"))["warnings"]
            self.assertTrue(any("was cut to" in each["text"] for each in warnings), warnings)

    def test_a_watchdog_and_a_ready_message_reach_systemd(self):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/notify"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
                systemd.bind(path)
                systemd.settimeout(10)
                with Server("--notify-socket", path) as server:
                    got = {systemd.recv(100) for _ in range(2)}
                    self.assertEqual(got, {b"READY=1", b"WATCHDOG=1"})
                    server.stop()

    def test_a_wall_clock_that_jumps_changes_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            preloaded = with_library(folder, "clock", """
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
    done = unittest.main(argv=sys.argv[:1], verbosity=2, warnings="ignore", exit=False)
    sys.exit(not (done.result.wasSuccessful() and memory_was_bounded()))
