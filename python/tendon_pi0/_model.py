"""What the command's verbs find out about models and machines, as dictionaries: docs/usage.md. And
an observation to try models with."""
from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Callable

from . import _engine
from ._options import OpenOptions, Path

if TYPE_CHECKING:
    from typing_extensions import Unpack


def demo_observation() -> dict[str, Any]:
    """What the policies "demo" and "demo:pi05" see where an episode begins.

    Under lerobot's keys: two pictures, uint8 [height, width, 3]; "observation.state", float64 [3]:
    the gripper's place and opening; "prompt"."""
    return _from_parts(*_engine.demo_observation())


def _from_parts(pictures: list[Any], state: list[float], prompt: str | None) -> dict[str, Any]:
    """An observation of the engine, under lerobot's keys."""
    import numpy as np
    observation: dict[str, Any] = {
        f"observation.images.{camera}": np.frombuffer(rgb, np.uint8).reshape(height, width, 3)
        for camera, height, width, rgb in pictures}
    return {**observation, "observation.state": np.array(state), "prompt": prompt}


def inspect(checkpoint: Path, **options: Unpack[OpenOptions]) -> dict[str, Any]:
    """What is in a model, as `tendon inspect --json` says it: configuration, cameras, prompt,
    statistics, tensors by group with bytes, memory plan. Opens no backend."""
    return json.loads(_engine.inspect(os.fspath(checkpoint), dict(options)))


def validate(checkpoint: Path, observation: dict[str, Any] | None = None, *,
             health_only: bool = False, all_layers: bool = False,
             **options: Unpack[OpenOptions]) -> dict[str, Any]:
    """A checkpoint's health, and a backend against the plain reference module by module, as
    `tendon validate --json` says it. `health` and, unless `health_only` or unsound, `modules` and
    `passed`. A negative verdict is no exception. Without an observation an embedded one is used."""
    return json.loads(_engine.validate(os.fspath(checkpoint), observation, health_only, all_layers,
                                       dict(options)))


def convert(checkpoint: Path, out: Path, **options: Unpack[OpenOptions]) -> dict[str, Any]:
    """Writes any model as one packed .safetensors file that loads in seconds: {"file", "bytes",
    "seconds"}. Raises VerdictError when its actions are not the model's, byte by byte."""
    return _engine.convert(os.fspath(checkpoint), os.fspath(out), dict(options))


def doctor(**options: Unpack[OpenOptions]) -> dict[str, Any]:
    """What this machine can run, as `tendon doctor --json` says it."""
    return json.loads(_engine.doctor(dict(options)))


def certify(checkpoint: Path, *, count: int = 3, seed: int = 0,
            against: Callable[[dict[str, Any], Any], Any] | None = None,
            against_name: str = "another implementation", out: Path | None = None,
            html: Path | None = None, **options: Unpack[OpenOptions]) -> dict[str, Any]:
    """How far a backend's actions are from the plain reference's, as `tendon certify --json` says
    it: stages and actions with their bounds, worst first, `passed`, and hashes of the model.

    The observations are `count` drawn within the checkpoint's statistics. `against(observation,
    noise)`: another implementation beside the reference, called with lerobot's keys and noise
    float32 [horizon, model_action_dim]; it returns actions [horizon, action_dim] in the robot's
    units, or {"actions": them, "stages": {name: float32 array}} with what it can tell of siglip
    [tokens, width], velocity (of the first Euler step) and actions (normalised), both [horizon,
    model_action_dim]. The engine is closed before it is called. `out` and `html` are written: what
    `tendon serve --certificate` takes, and a page."""
    def asked(parts: Any, noise: bytes, columns: int) -> tuple[list[float], list[Any]]:
        import numpy as np
        values = np.frombuffer(noise, np.float32).reshape(-1, columns)
        said = against(_from_parts(*parts), values)
        said = said if isinstance(said, dict) else {"actions": said}
        return (np.asarray(said["actions"], np.float64).ravel().tolist(),
                [(name, np.asarray(stage, np.float32).tobytes())
                 for name, stage in said.get("stages", {}).items()])

    text, page = _engine.certify(os.fspath(checkpoint), asked if against else None, against_name,
                                 (count, seed), dict(options))
    for path, content in ((out, text), (html, page)):
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(content + "\n")
    return json.loads(text)
