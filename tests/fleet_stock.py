"""Robots with openpi's client from PyPI, for fleet_test.py; prints what fleet_robot prints.

    fleet_stock.py robots HOST PORT FIRST COUNT HZ EPISODE_S   as users write it: connect again, ask
                                                               again, whatever went wrong
    fleet_stock.py again HOST PORT    asks what standard input says was asked elsewhere, once each
"""
import json
import sys
import threading
import time

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

GREY = np.full((63, 63, 3), 128, np.uint8)
OUTPUT = threading.Lock()


def scene(robot):
    return {"observation.images.top": GREY, "observation.images.gripper": GREY,
            "observation.state": np.array([robot / 100, 0.5, 1]), "prompt": "reach the red disc"}


def say(line):
    with OUTPUT:
        print(json.dumps(line), flush=True)


def run(address, robot, phase, hz, episode_s):
    policy, episode_end, start = None, 0, time.monotonic()
    for id in range(10**9):
        time.sleep(max(0, start + (id + phase) / hz - time.monotonic()))
        ok = False
        while not ok:
            line = {"robot": robot, "id": id, "begin": time.time()}
            try:
                if policy is None or time.monotonic() > episode_end:
                    if policy is not None:
                        policy._ws.close()
                    policy = WebsocketClientPolicy(*address)
                    episode_end = time.monotonic() + episode_s
                reply = policy.infer({**scene(robot), "request_id": f"{robot}.{id}"})
                line.update(fingerprint=policy.get_server_metadata()["fingerprint"],
                            replied_to=reply["request_id"], delay=-1, previous=[],
                            actions=reply["actions"].ravel().tolist())
                ok = True
            except Exception as error:  # a robot's loop: whatever it is, connect again
                line["error"], policy = repr(error), None
            say({**line, "end": time.time(), "ok": ok})
            if not ok:
                time.sleep(0.02)


def robots(address, first, count, hz, episode_s):
    threads = [threading.Thread(target=run, daemon=True,
                                args=(address, first + i, i / count, hz, episode_s))
               for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def again(address):
    policy = WebsocketClientPolicy(*address)
    for text in sys.stdin:
        asked = json.loads(text)
        previous = np.array(asked["previous"]).reshape(-1, 3)
        reply = policy.infer({**scene(asked["robot"]), "prev_chunk": previous,
                              "inference_delay": asked["delay"]})
        say({"robot": asked["robot"], "id": asked["id"],
             "actions": reply["actions"].ravel().tolist()})


if __name__ == "__main__":
    what, host, port, *more = sys.argv[1:]
    if what == "again":
        again((host, int(port)))
    else:
        robots((host, int(port)), int(more[0]), int(more[1]), float(more[2]), float(more[3]))
