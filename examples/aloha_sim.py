#!/usr/bin/env python3
"""An ALOHA robot in MuJoCo, steered by a policy server through openpi's own client.

    tendon serve synthetic:pi0-small --robot aloha --default-prompt "Transfer cube"
    MUJOCO_GL=egl python examples/aloha_sim.py --out aloha_sim

The loop is that of openpi's simulator example: gym_aloha/AlohaTransferCube-v0, one camera, no
prompt, 50 actions per second, ten actions of every chunk. Writes OUT.gif, the episode, and OUT.png,
six moments of it and the joints over time. openpi's serve_policy.py --env ALOHA_SIM works as well.

Synthetic weights are random: the arms wander and the cube stays where it is. What this shows is
that picture, state and actions go around.
"""
import argparse
import time

import gym_aloha  # noqa: F401  (registers its environments)
import gymnasium
import numpy as np
from openpi_client import action_chunk_broker, image_tools, websocket_client_policy
from openpi_client.runtime import environment, runtime, subscriber
from openpi_client.runtime.agents import policy_agent
from PIL import Image, ImageDraw

ACTIONS_PER_CHUNK = 10
GIF_EVERY = 5  # frames
LEFT_ARM, RIGHT_ARM = slice(0, 7), slice(7, 14)


class AlohaSimulator(environment.Environment):
    def __init__(self, task, seed):
        np.random.seed(seed)  # the simulator's cube is placed by NumPy's global generator
        self.seed = seed
        self.world = gymnasium.make(task, obs_type="pixels_agent_pos", max_episode_steps=400)
        self.picture, self.joints, self.best_reward, self.ended = None, None, 0.0, False

    def reset(self):
        observation, _ = self.world.reset(seed=self.seed)
        self.see(observation)
        self.ended = False

    def see(self, observation):
        self.picture = observation["pixels"]["top"]  # uint8 [480, 640, 3]
        self.joints = observation["agent_pos"]  # float64 [14]

    def is_episode_complete(self):
        return self.ended

    def get_observation(self):
        small = image_tools.convert_to_uint8(image_tools.resize_with_pad(self.picture, 224, 224))
        return {"state": self.joints, "images": {"cam_high": small.transpose(2, 0, 1)}}

    def apply_action(self, action):
        observation, reward, terminated, truncated, _ = self.world.step(action["actions"])
        self.see(observation)
        self.best_reward = max(self.best_reward, reward)
        self.ended = terminated or truncated


class TimedPolicy(websocket_client_policy.WebsocketClientPolicy):
    """The stock client with a stopwatch."""

    def infer(self, obs):
        begin = time.monotonic()
        result = super().infer(obs)
        self.milliseconds = [*getattr(self, "milliseconds", []), 1e3 * (time.monotonic() - begin)]
        return result


class Film(subscriber.Subscriber):
    def __init__(self, world, path):
        self.world, self.path = world, path

    def on_episode_start(self):
        self.frames, self.joints = [self.world.picture], [self.world.joints]

    def on_step(self, observation, action):
        self.frames.append(self.world.picture)
        self.joints.append(self.world.joints)

    def on_episode_end(self):
        small = [Image.fromarray(f).resize((320, 240)) for f in self.frames[::GIF_EVERY]]
        small = [f.quantize(64) for f in small]
        small[0].save(self.path + ".gif", save_all=True, append_images=small[1:], loop=0,
                      duration=20 * GIF_EVERY, optimize=True)
        self.strip().save(self.path + ".png", optimize=True)

    def strip(self):
        """Six moments in two rows, the joints of both arms below, in 64 colours."""
        sheet = Image.new("RGB", (720, 500), "white")
        last = len(self.frames) - 1
        for i in range(6):
            step = last * i // 5
            frame = Image.fromarray(self.frames[step]).resize((240, 180))
            ImageDraw.Draw(frame).text((6, 4), f"step {step}", "white")
            sheet.paste(frame, (240 * (i % 3), 180 * (i // 3)))
        joints = np.array(self.joints)
        plot_joints(sheet, (0, 370, 355, 495), joints[:, LEFT_ARM], "left arm")
        plot_joints(sheet, (365, 370, 720, 495), joints[:, RIGHT_ARM], "right arm")
        return sheet.quantize(64)


COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#7f7f7f")


def plot_joints(sheet, box, joints, title):
    left, top, right, bottom = box
    draw = ImageDraw.Draw(sheet)
    low, high = joints.min(), max(joints.max(), joints.min() + 1e-6)
    x = left + 6 + (right - left - 12) * np.arange(len(joints)) / max(len(joints) - 1, 1)
    for joint, colour in zip(joints.T, COLOURS):
        y = bottom - 4 - (bottom - top - 24) * (joint - low) / (high - low)
        draw.line(list(zip(x, y)), fill=colour, width=1)
    draw.rectangle(box, outline="#888888")
    draw.text((left + 6, top + 3), f"{title}: joint positions, {low:.1f} to {high:.1f}", "black")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--api-key")
    parser.add_argument("--task", default="gym_aloha/AlohaTransferCube-v0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="at most; 50 are a second")
    parser.add_argument("--out", default="aloha_sim", help="writes OUT.gif and OUT.png")
    given = parser.parse_args()

    policy = TimedPolicy(given.host, given.port, given.api_key)
    print("the server says:", policy.get_server_metadata())
    world = AlohaSimulator(given.task, given.seed)
    broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=ACTIONS_PER_CHUNK)
    runtime.Runtime(
        environment=world,
        agent=policy_agent.PolicyAgent(policy=broker),
        subscribers=[Film(world, given.out)],
        max_hz=50,
        max_episode_steps=given.steps,
    ).run()

    ms = np.array(policy.milliseconds)
    print(f"{len(ms)} chunks, {np.median(ms):.1f} ms each (median; slowest {ms.max():.1f} ms), "
          f"best reward {world.best_reward:g} of 4")
    print(f"wrote {given.out}.gif and {given.out}.png")


if __name__ == "__main__":
    main()
