"""A benchmark of allenai's evaluation harness, as its users write one: a point on a table that goes
where the policy says. Observations and actions are kept for the test."""
import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult, repeat_last_hold

STEPS = 10


class Table(StepBenchmark):
    seen = []  # of all episodes: [(observation, action)]

    def __init__(self, send_state=False, send_wrist_image=False):
        super().__init__()
        self.asked = (send_state, send_wrist_image)

    def get_tasks(self):
        return [{"name": f"reach the {colour} disc", "x": x}
                for colour, x in (("red", 0.3), ("blue", 0.7))]

    def reset(self, task):
        self.state, self.steps = np.array([task["x"], 0.5, 1.0]), 0
        return self.state

    def make_obs(self, state, task):
        picture = np.full((64, 64, 3), 70, np.uint8)
        row, column = (np.clip(state[:2], 0, 0.9) * 64).astype(int)
        picture[row:row + 4, column:column + 4] = (200, 30, 30)
        observation = {"images": {"agentview": picture}, "task_description": task["name"]}
        if self.asked[0]:
            observation["state"] = state.copy()
        if self.asked[1]:
            observation["images"]["wrist"] = picture[::-1].copy()
        return observation

    def step(self, action):
        actions = np.asarray(action["actions"])
        Table.seen.append((self.make_obs(self.state, self._task), actions))
        self.state = np.clip(self.state + 0.05 * actions, 0, 1)
        self.steps += 1
        return StepResult(self.state, 0.0, self.steps == STEPS, {})

    def check_done(self, result):
        return result.done

    def get_step_result(self, result):
        return {"success": bool(self.steps == STEPS)}

    def get_hold_action(self, last):
        return repeat_last_hold(last, 3)
