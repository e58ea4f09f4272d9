#!/usr/bin/env python3
"""Asks a policy server for one chunk of actions with openpi's own client.

    tendon serve demo                                # in another terminal: ALOHA, demo weights
    python examples/python_client.py [HOST] [PORT]

Needs openpi-client, see examples/README.md. Nothing here knows which server answers: openpi's or
tendon.
"""
import sys

import numpy as np
from openpi_client import websocket_client_policy

host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000

# Connects and reads the server's greeting. With a key: api_key="...".
policy = websocket_client_policy.WebsocketClientPolicy(host=host, port=port)
print("the server says:", policy.get_server_metadata())

# What an ALOHA robot sends: 14 joint positions (per arm six joints and the gripper, left arm first)
# and up to three pictures, RGB as three planes of 224 x 224. openpi_client.image_tools shrinks
# pictures of other sizes. Here: a robot in its rest pose that looks at grey walls.
arm = [0, -0.96, 1.16, 0, -0.3, 0, 0.5]
wall = np.full((3, 224, 224), 128, np.uint8)
observation = {
    "state": np.array(arm + arm),
    "images": {"cam_high": wall, "cam_left_wrist": wall, "cam_right_wrist": wall},
    "prompt": "Transfer cube",
}

result = policy.infer(observation)  # RuntimeError with the server's words if it refuses

actions = result["actions"]  # float64 [steps, 14]: joint targets, one row per control step
print("actions:", actions.dtype, actions.shape)
print("first action:", np.round(actions[0], 3))
for name, value in {**result["policy_timing"], **result["server_timing"]}.items():
    print(f"  {name}: {value:.3f}")
