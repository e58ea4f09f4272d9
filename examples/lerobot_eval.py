"""lerobot's evaluation of a tendon policy: the demo's checkpoint on the demo's table.

    cmake --build build/release --target drive_table
    python lerobot_eval.py build/release/drive_table --eval.n_episodes=10

Needs tendon-pi0, lerobot and lerobot_policy_tendon. The options are lerobot-eval's; for an
environment of lerobot's own that command alone is enough:

    lerobot-eval --policy.type=tendon --policy.checkpoint=FOLDER --env.type=libero ...
"""
import dataclasses
import subprocess
import sys

import gymnasium
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

SIDE, ROWS, CAMERAS = 63, 5, ("top", "gripper")  # drive_table takes five actions at once
STEPS_MAX = 60


class Table(gymnasium.Env):
    """The simulated table, in a process of its own: tools/train_demo/drive.cc."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Dict({
        "pixels": gymnasium.spaces.Dict({
            camera: gymnasium.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8) for camera in CAMERAS}),
        "agent_pos": gymnasium.spaces.Box(-10, 10, (3,), np.float32)})
    action_space = gymnasium.spaces.Box(-10, 10, (3,), np.float32)
    _max_episode_steps = STEPS_MAX

    def __init__(self, program, render_mode=None):
        self.program, self.render_mode, self.process = program, render_mode, None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.close()
        self.process = subprocess.Popen([self.program, str(seed or 0), "reach", "seen"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.task_description = self.process.stdout.readline().decode().rstrip("\n")
        self.actions = []
        return self._look(), {"is_success": False}

    def _look(self):
        self.end = self.process.stdout.read(1)[0]
        state = np.frombuffer(self.process.stdout.read(12), np.float32)
        pictures = np.frombuffer(self.process.stdout.read(2 * SIDE * SIDE * 3), np.uint8)
        pictures = pictures.reshape(2, SIDE, SIDE, 3)
        self.seen = {"pixels": dict(zip(CAMERAS, pictures)), "agent_pos": state}
        return self.seen

    def step(self, action):
        self.actions.append(action)
        if len(self.actions) == ROWS:
            self.process.stdin.write(np.asarray(self.actions, np.float32).tobytes())
            self.process.stdin.flush()
            self.actions = []
            self._look()
        return (self.seen, float(self.end == 1), self.end == 1, self.end == 2,
                {"is_success": self.end == 1})

    def render(self):
        return self.seen["pixels"]["top"]

    def close(self):
        if self.process:
            self.process.kill()
            self.process.communicate()


@EnvConfig.register_subclass("tendon_table")
@dataclasses.dataclass
class TableConfig(EnvConfig):
    task: str = "reach"
    program: str = "build/release/drive_table"
    features: dict = dataclasses.field(default_factory=lambda: {
        "action": PolicyFeature(FeatureType.ACTION, (3,)),
        "agent_pos": PolicyFeature(FeatureType.STATE, (3,)),
        **{f"pixels/{camera}": PolicyFeature(FeatureType.VISUAL, (SIDE, SIDE, 3))
           for camera in CAMERAS}})
    features_map: dict = dataclasses.field(default_factory=lambda: {
        "action": "action", "agent_pos": "observation.state",
        **{f"pixels/{camera}": f"observation.images.{camera}" for camera in CAMERAS}})

    @property
    def gym_id(self):
        return "tendon_table-v0"

    @property
    def gym_kwargs(self):
        return {"program": self.program}


def main():
    gymnasium.register("tendon_table-v0", Table)
    program, *options = sys.argv[1:]
    sys.argv[1:] = ["--policy.type=tendon", "--policy.checkpoint=demo",
                    f"--policy.n_action_steps={ROWS}", "--env.type=tendon_table",
                    f"--env.program={program}", "--eval.batch_size=1", *options]
    from lerobot.scripts.lerobot_eval import main as evaluate
    evaluate()


if __name__ == "__main__":
    main()
