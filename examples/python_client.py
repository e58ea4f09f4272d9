#!/usr/bin/env python3
"""Asks a policy server for one chunk of actions with openpi's own client.

    tendon serve demo                                # in another terminal
    python examples/python_client.py [HOST] [PORT]

Needs openpi-client, see examples/README.md. Other policies take other pictures and states; the
calls stay the same, and no line but the observation knows which server answers.
"""
import sys

import numpy as np
from openpi_client import websocket_client_policy

host = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000

# Connects and reads the server's greeting. With a key: api_key="...".
policy = websocket_client_policy.WebsocketClientPolicy(host=host, port=port)
print("the server says:", policy.get_server_metadata())

# The demo's table, one unit wide, has a red disc up to the right of the gripper.
GRIPPER, DISC = (0.5, 0.5), (0.7, 0.3)


def picture(centre, width):
    """A square of the table, seen from above."""
    along = width * ((np.arange(63) + 0.5) / 63 - 0.5)
    away = np.hypot(centre[0] + along - DISC[0], centre[1] + along[:, None] - DISC[1])
    return np.where(away[..., None] < 0.085, (226, 40, 44), (64, 68, 76)).astype(np.uint8)


# lerobot's names; pictures are RGB [height, width, 3].
observation = {
    "observation.images.top": picture((0.5, 0.5), width=1.1),
    "observation.images.gripper": picture(GRIPPER, width=0.5),
    "observation.state": np.array([*GRIPPER, 1.0]),  # x, y, and the gripper is open
    "prompt": "reach the red disc",
}

result = policy.infer(observation)  # RuntimeError with the server's words if it refuses

actions = result["actions"]  # float64 [10, 3]: velocities of x, y and opening, a row each 0.1 s
print("actions:", actions.dtype, actions.shape)
print("first action:", np.round(actions[0], 3))
for name, value in {**result["policy_timing"], **result["server_timing"]}.items():
    print(f"  {name}: {value:.3f}")
