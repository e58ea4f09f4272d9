#!/usr/bin/env python3
"""vla_eval_test.py TENDON PROTOCOL VENVS: allenai's evaluation harness asks tendon serve.

The harness from PyPI, unmodified, runs a benchmark (vla_eval_benchmark.py) against
`tendon serve demo --dialect vla-eval`, in both of its modes; what the policy should have said is
asked of a second server in openpi's words. Exit code 77, "skipped: reason", where the harness
cannot be had.
"""
import asyncio
import contextlib
import json
import pathlib
import subprocess
import sys

from environment import Checks, environment

HERE = pathlib.Path(__file__).resolve()
REQUIREMENTS = HERE.with_name("vla_eval_requirements.txt")
CHUNK_STEPS = 4


# ---- inside the environment ----


def expected_chunk(port, observation):
    """The policy's answer to the same observation, from the server of openpi's dialect."""
    import msgpack
    import numpy as np
    from websockets.sync.client import connect

    def pack(array):
        if not isinstance(array, np.ndarray):
            return array
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str,
                b"shape": array.shape}

    first, second = observation["images"].values()
    request = {"observation.images.top": first, "observation.images.gripper": second,
               "observation.state": observation["state"],
               "prompt": observation["task_description"]}
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as ws:
        ws.recv()
        ws.send(msgpack.packb(request, default=pack))
        actions = msgpack.unpackb(ws.recv())["actions"]
    rows = np.frombuffer(actions[b"data"], actions[b"dtype"]).reshape(actions[b"shape"])
    return rows.astype(np.float32)


def evaluate(check, ports, image_format, **overrides):
    """The harness's own loop over two tasks; the observations and actions of the benchmark."""
    from vla_eval import api
    from vla_eval.protocol import numpy_codec
    from vla_eval_benchmark import STEPS, Table
    numpy_codec.set_image_format(image_format)
    Table.seen.clear()
    results = api.run({"server": {"url": f"ws://127.0.0.1:{ports['vla-eval']}"},
                       "benchmarks": [{"benchmark": "vla_eval_benchmark:Table",
                                       "episodes_per_task": 1, **overrides}]},
                      docker=False, no_save=True)
    what = f"{image_format}, {overrides}"
    check(results[0].get("mean_success") == 1.0, f"{what}: {results[0]}")
    check(len(Table.seen) == 2 * STEPS, f"{what}: {len(Table.seen)} steps")
    for observation, action in Table.seen:
        check(set(observation) == {"images", "task_description", "state"}
              and len(observation["images"]) == 2, f"{what}: observation_params were not heard")
        check(action.dtype.str == "<f4" and action.shape == (3,), f"{what}: {action!r}")
    return list(Table.seen)


def check_rows(check, ports, seen, what):
    """Every fourth observation is an inference; an episode begins with one."""
    import numpy as np
    from vla_eval_benchmark import STEPS
    for step, (observation, action) in enumerate(seen):
        row = step % STEPS % CHUNK_STEPS
        if row == 0:
            chunk = expected_chunk(ports["openpi"], observation)
        check(np.array_equal(action, chunk[row]), f"{what}: step {step}: {action}, {chunk[row]}")
    check(not np.array_equal(seen[0][1], seen[1][1]), f"{what}: rows do not differ")


async def check_sessions(check, ports, seen):
    """Two environments at once, errors, another protocol version, a connection that is lost."""
    import numpy as np
    from vla_eval.connection import Connection
    from vla_eval.protocol import MessageType
    url = f"ws://127.0.0.1:{ports['vla-eval']}"
    views = [seen[0][0], seen[len(seen) // 2][0]]
    chunks = [expected_chunk(ports["openpi"], view) for view in views]
    async with Connection(url) as one, Connection(url) as other:
        hello = one.server_info
        check(hello["protocol_version"] == 1 and hello["cameras"] == ["top", "gripper"]
              and len(hello["fingerprint"]) == 16, f"hello: {hello}")
        for row in range(3):
            for connection, view, chunk in zip((one, other), views, chunks):
                action = (await connection.act(view))["actions"]
                check(np.array_equal(action, chunk[row]), f"sessions: row {row}")
        await one.start_episode({"task": {}})
        action = (await one.act(views[0]))["actions"]
        check(np.array_equal(action, chunks[0][0]), "a new episode begins with an inference")
        await one.end_episode({})
        for broken, word in [({**views[0], "state": np.zeros(2)}, "'state' has 2 numbers"),
                             ({**views[0], "images": {}}, "images"),
                             ({**views[0], "task_description": ""}, "prompt is empty")]:
            with check.refused(word, f"an observation: {word}"):
                await one.act(broken)
        action = (await one.act(views[0]))["actions"]
        check(np.array_equal(action, chunks[0][0]), "it goes on after an error")
        await one._ws.close()
        action = (await one.act(views[0]))["actions"]
        check(np.array_equal(action, chunks[0][0]), "a new connection begins with an inference")
        seq = await one.send(MessageType.HELLO, {"protocol_version": 2})
        reply = await one.recv(timeout=10)
        check(reply.type == MessageType.ERROR and reply.seq == seq and
              "protocol_version" in reply.payload["error"], f"another version: {reply}")


def inside(text):
    ports, check = json.loads(text), Checks()
    seen = evaluate(check, ports, "png")
    check_rows(check, ports, seen, "png")
    check_rows(check, ports, evaluate(check, ports, "raw"), "raw")
    evaluate(check, ports, "jpeg")
    evaluate(check, ports, "png", mode="live", hz=20.0, wait_first_action=True)
    asyncio.run(check_sessions(check, ports, seen))
    return check.end()


# ---- outside ----


def main(_, protocol, venvs):
    from policy_server import Server
    python = environment(pathlib.Path(venvs).absolute() / "vla-eval", REQUIREMENTS)
    with contextlib.ExitStack() as stack:
        servers = {dialect: stack.enter_context(Server("--dialect", dialect, *more))
                   for dialect, more in (("openpi", ()),
                                         ("vla-eval", ("--chunk-steps", CHUNK_STEPS)))}
        ports = json.dumps({dialect: server.port for dialect, server in servers.items()})
        code = subprocess.run([python, "-B", HERE, "--inside", ports], timeout=150).returncode
        status = json.loads(servers["vla-eval"].get("/status"))["requests"]
        stopped = [server.stop() for server in servers.values()]
    failed = status["failed"] or stopped != [0, 0]
    print(f"requests {status}, exit codes {stopped}")
    return 1 if code or failed else 0


if __name__ == "__main__":
    sys.exit(inside(sys.argv[2]) if sys.argv[1:2] == ["--inside"] else main(*sys.argv[1:]))
