#!/usr/bin/env python3
"""clients_test.py TENDON PROTOCOL VENVS: real robots' clients ask tendon serve.

openpi's own client with the oldest and the newest WebSocket library that it takes, and four other
libraries, send openpi's recorded requests (PROTOCOL/messages, made by openpi's own client and
server). The packages go into virtual environments in VENVS, once. Exit code 77, "skipped:
reason", where they cannot be had.
"""
import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import client_libraries
from environment import OWN_VERSION, Checks, environment, interpreter, skip, tendon

HERE = pathlib.Path(__file__).resolve()
REQUIREMENTS = HERE.parent / "clients_requirements"
DEFAULT_PROMPT = "pick up the red cube"
KEY = "a-key-for-this-test"
# What is served; openpi's configurations have the horizons of the recorded replies.
SERVERS = {
    "aloha": ("synthetic:pi0-small", "--robot", "aloha", "--default-prompt", DEFAULT_PROMPT),
    "droid": ("synthetic:pi05-small", "--config", "pi05_droid", "--robot", "droid"),
    "libero": ("synthetic:pi05-small", "--config", "pi05_libero", "--robot", "libero"),
    "slow": ("synthetic:pi0-small", "--robot", "aloha", "--config", "{folder}/slow.json"),
    "key": ("demo", "--api-key-file", "{folder}/key.txt"),
    "strict": ("synthetic:pi0-small", "--robot", "aloha", "--strict-openpi"),
}
SLOW = {"num_steps": 800}  # Euler steps: one inference takes a second or more


# ---- environments ----


def clients_environment(venvs, name):
    """openpi-client wants NumPy 1, whose wheels end with Python 3.12."""
    versions = sorted(("3.12", "3.11", "3.10"), key=lambda version: version != OWN_VERSION)
    python = next(filter(None, (interpreter(v, headers=False) for v in versions)), None) or skip(
        f"openpi-client needs Python 3.10 to 3.12, this is {OWN_VERSION}")
    return environment(pathlib.Path(venvs).absolute() / f"clients-{name}",
                       REQUIREMENTS / f"{name}.txt", python=python)


# ---- inside the environments ----


class Fixtures:
    """openpi's recorded messages, and how replies are compared with them."""

    def __init__(self, folder):
        from openpi_client import msgpack_numpy
        self.folder, self.codec = pathlib.Path(folder) / "messages", msgpack_numpy

    def bytes(self, name):
        return (self.folder / f"{name}.bin").read_bytes()

    def decoded(self, name):
        return self.codec.unpackb(self.bytes(name))

    def without_times(self, reply):
        """The reply's bytes with every number under *_timing zero, and what the bytes held."""
        decoded = self.codec.unpackb(reply) if isinstance(reply, bytes) else reply
        still = {key: {name: type(number)(0) for name, number in value.items()}
                 if key.endswith("_timing") else value for key, value in decoded.items()}
        return self.codec.packb(still), decoded


def shape_of(value):
    """What has to agree with openpi's reply: kinds, key order, element types and sizes."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    if hasattr(value, "dtype"):
        return value.dtype.str, value.shape
    return type(value).__name__


def is_like(check, got, recorded, first, what):
    """`got` has the keys of openpi's reply in its order; more only inside server_timing. The first
    reply of a connection has no prev_total_ms; not all recorded ones were the first."""
    check(list(got) == list(recorded), f"{what}: keys {list(got)}, openpi {list(recorded)}")
    got, recorded = shape_of(got), shape_of(recorded)
    timing, openpi = got.pop("server_timing"), recorded.pop("server_timing")
    if first:
        openpi.pop("prev_total_ms", None)
    check(("prev_total_ms" in timing) != first, f"{what}: prev_total_ms in {timing}")
    check(got == recorded, f"{what}: {got}, openpi {recorded}")
    check({key: timing.get(key) for key in openpi} == openpi, f"{what}: {timing}, openpi {openpi}")
    check([key for key in timing if key in openpi] == list(openpi), f"{what}: order in {timing}")


class Replies:
    """Every client's replies to every request; all must be the same but for times."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def keep(self, client, request, nth, message):
        (self.folder / f"{request}.{nth}.{client}").write_bytes(message)

    def compare(self, check):
        asked = {}
        for path in sorted(self.folder.iterdir()):
            request, nth, client = path.name.split(".", 2)
            asked.setdefault((request, nth), {})[client] = path.read_bytes()
        for (request, nth), replies in asked.items():
            first, *others = replies
            for other in others:
                check(replies[first] == replies[other],
                      f"{request}, reply {nth}: {other} got other bytes than {first}")
        return {key: len(replies) for key, replies in asked.items()}


REQUESTS = {"aloha": "aloha", "aloha_sim": "aloha", "droid": "droid", "libero": "libero"}


@contextlib.contextmanager
def robots(ports):
    """connect(server, api_key) gives a client of openpi's. They are closed at the end: with old
    libraries an open connection's thread keeps Python from leaving."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy
    with contextlib.ExitStack() as stack:
        def connect(server, api_key=None):
            policy = WebsocketClientPolicy("127.0.0.1", ports[server], api_key)
            stack.callback(lambda: policy._ws.close())
            return policy
        yield connect


def stock_client(check, given, fixtures, replies):
    """openpi's WebsocketClientPolicy and ActionChunkBroker."""
    with robots(given.ports) as connect:
        for request, robot in REQUESTS.items():
            check_robot(check, connect(robot), request, fixtures,
                        lambda nth, message: replies.keep(given.name, request, nth, message))
        check_default_prompt(check, connect("aloha"), fixtures)
        cameras = connect("key", KEY).get_server_metadata()["cameras"]
        check(cameras == ["top", "gripper"], f"the demo's cameras are {cameras}")
        check_strict(check, connect("strict"), fixtures)


def check_robot(check, policy, request, fixtures, keep):
    """One robot's requests, good and bad, on one connection."""
    import numpy as np
    metadata = policy.get_server_metadata()
    check(isinstance(metadata, dict), f"{request}: metadata {metadata!r}")
    observation = fixtures.decoded(f"request_{request}")
    for nth, recorded in enumerate(("", "_second")):
        reply = policy.infer(observation)
        is_like(check, reply, fixtures.decoded(f"response_{request}{recorded}"), nth == 0,
                f"{request}, reply {nth}")
        check(np.isfinite(reply["actions"]).all(), f"{request}: actions are finite")
        keep(nth, fixtures.without_times(reply)[0])
    check_broker(check, policy, observation, reply["actions"], request)
    with check.refused("Error in inference server", f"{request}: a bad observation"):
        policy.infer(fixtures.decoded("request_missing_keys"))
    again = policy.infer(observation)["actions"]
    check(np.array_equal(again, reply["actions"]), f"{request}: it goes on after a bad request")


def check_broker(check, policy, observation, chunk, what):
    """25 control steps of ten actions per chunk are three inferences and the chunk's rows."""
    import numpy as np
    from openpi_client.action_chunk_broker import ActionChunkBroker
    asked = []

    class Counted:
        def infer(self, obs):
            asked.append(obs)
            return policy.infer(obs)

    broker = ActionChunkBroker(Counted(), action_horizon=10)
    for step in range(25):
        row = broker.infer(observation)["actions"]
        check(np.array_equal(row, chunk[step % 10]), f"{what}: row {step} through the broker")
    check(len(asked) == 3, f"{what}: {len(asked)} inferences for 25 steps")


def check_default_prompt(check, policy, fixtures):
    import numpy as np
    silent = fixtures.decoded("request_aloha_sim")
    default = policy.infer(silent)["actions"]
    said = policy.infer({**silent, "prompt": DEFAULT_PROMPT})["actions"]
    other = policy.infer({**silent, "prompt": "open the drawer"})["actions"]
    check(np.array_equal(default, said), "no prompt is --default-prompt")
    check(not np.array_equal(default, other), "a request's own prompt wins")


def write_dataset(check, given, *_):
    """Scenes of the demo's table with what its policy does there, as examples/ writes datasets."""
    import numpy as np
    sys.path.insert(0, str(HERE.parents[1] / "examples"))
    import dataset_to_recording
    with robots(given.ports) as connect:
        policy = connect("key", KEY)
        requests = []
        for x in (0.3, 0.5, 0.7):
            scene = {"observation.images.top": np.full((63, 63, 3), 70, np.uint8),
                     "observation.images.gripper": np.full((3, 63, 63), 70, np.uint8),
                     "observation.state": np.array([x, 0.5, 1.0]), "prompt": "reach the red disc"}
            requests.append({**scene, "actions": policy.infer(scene)["actions"]})
    folder = pathlib.Path(given.replies).parent / "dataset"
    folder.mkdir()
    dataset_to_recording.write(folder / "dataset.tendon-record", requests)


def check_strict(check, policy, fixtures):
    from websockets.exceptions import ConnectionClosed
    with check.refused("Error in inference server", "--strict-openpi: a bad observation"):
        policy.infer(fixtures.decoded("request_missing_keys"))
    with check.refused("1011", "--strict-openpi: closed after an error", ConnectionClosed):
        policy.infer(fixtures.decoded("request_aloha"))


def other_clients(check, given, fixtures, replies):
    for ask in client_libraries.OTHERS:
        name = ask.__name__.removeprefix("ask_")
        for request, robot in REQUESTS.items():
            url = f"ws://127.0.0.1:{given.ports[robot]}"
            greeting, *messages = ask(url, fixtures.bytes(f"request_{request}"))
            check(isinstance(fixtures.codec.unpackb(greeting), dict), f"{name}: metadata")
            for nth, message in enumerate(messages):
                still, decoded = fixtures.without_times(message)
                check(fixtures.codec.packb(decoded) == message,
                      f"{name}, {request}: the stock packer would write other bytes")
                replies.keep(name, request, nth, still)
    with check.refused("403", "an Origin that is not allowed", Exception):
        client_libraries.connect_as_a_page(f"ws://127.0.0.1:{given.ports['aloha']}",
                                           origin="http://page.example")
    client_libraries.connect_as_a_page(f"ws://127.0.0.1:{given.ports['aloha']}")
    check_pongs(check, given.ports["slow"], fixtures.bytes("request_aloha"))


def check_pongs(check, port, request):
    """Pings are answered while an inference runs."""
    import asyncio

    from websockets.asyncio.client import connect

    async def ask():
        async with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None,
                           ping_interval=None) as ws:
            await ws.recv()
            begin = time.monotonic()
            await ws.send(request)
            reply, latencies = asyncio.ensure_future(ws.recv()), []
            while not reply.done():
                latencies.append(await asyncio.wait_for(await ws.ping(), 10))
                await asyncio.sleep(0.02)
            return latencies, time.monotonic() - begin, await reply

    latencies, seconds, reply = asyncio.run(ask())
    check(isinstance(reply, bytes), f"slow: {reply!r:.200}")
    # Where a pong waits for the inference, there is one: it comes with the reply.
    check(len(latencies) > 5,
          f"slow: {len(latencies)} pongs in {seconds:.2f} s, the slowest after {max(latencies)} s")


ROLES = {"oldest": (stock_client,), "newest": (stock_client, other_clients, write_dataset)}


def inside(text):
    """In an environment: asks the servers, keeps the replies, and says what failed."""
    given = argparse.Namespace(**json.loads(text))
    check = Checks()
    for role in ROLES[given.name]:
        role(check, given, Fixtures(given.data), Replies(given.replies))
    print(given.name, end=": ")
    return check.end()


# ---- outside ----


def run(protocol, pythons, folder, check):
    from policy_server import Server
    (folder / "key.txt").write_text(KEY + "\n")
    (folder / "slow.json").write_text(json.dumps(SLOW))
    replies = folder / "replies"
    replies.mkdir()
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(
            Server(model=[word.format(folder=folder) for word in words]))
            for name, words in SERVERS.items()}
        for name, server in servers.items():
            check(server.get("/readyz") == "ready\n", f"{name}: /readyz")
            check(server.get("/healthz") == "OK\n", f"{name}: /healthz, admin port")
            check(server.get("/healthz", server.port) == "OK\n", f"{name}: /healthz, policy port")
        for name, python in pythons.items():
            role = {"name": name, "data": protocol, "replies": str(replies),
                    "ports": {name: server.port for name, server in servers.items()}}
            child = subprocess.run([python, "-B", HERE, "--inside", json.dumps(role)], timeout=150)
            check(child.returncode == 0, f"environment '{name}'")
        counts = Replies(replies).compare(check)
        clients = len(pythons) + len(client_libraries.OTHERS)
        check(set(counts.values()) == {clients} and len(counts) == 2 * len(REQUESTS),
              f"{clients} clients should have answers to everything, got {counts}")
        done = tendon("validate", "demo", "--loss", folder / "dataset", "--json")
        loss = json.loads(done.stdout or "{}").get("flow_matching", {})
        check(loss.get("examples") == 3 and loss["ratio"] < 0.25, f"{loss}, {done.stderr}")
        for name, server in servers.items():
            check(server.stop() == 0, f"{name}: exit code after SIGTERM; {server.log}")


def main(_, protocol, venvs):
    pythons = {name: clients_environment(venvs, name) for name in ROLES}
    check, begin = Checks(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tendon-clients-") as folder:
        run(protocol, pythons, pathlib.Path(folder), check)
    print(f"{time.monotonic() - begin:.1f} s outside")
    return check.end()


if __name__ == "__main__":
    sys.exit(inside(sys.argv[2]) if sys.argv[1:2] == ["--inside"] else main(*sys.argv[1:]))
