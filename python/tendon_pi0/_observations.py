"""An observation to try things with."""
from __future__ import annotations

from typing import Any

from . import _engine


def demo_observation() -> dict[str, Any]:
    """What the policies "demo" and "demo:pi05" see where an episode begins.

    Under lerobot's keys: two pictures, uint8 [height, width, 3]; "observation.state", float64 [3]:
    the gripper's place and opening; "prompt"."""
    return from_parts(*_engine.demo_observation())


def from_parts(pictures: list[Any], state: list[float], prompt: str | None) -> dict[str, Any]:
    """An observation of the engine, under lerobot's keys."""
    import numpy as np
    observation: dict[str, Any] = {
        f"observation.images.{camera}": np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
        for camera, height, width, rgb in pictures}
    return {**observation, "observation.state": np.array(state), "prompt": prompt}
