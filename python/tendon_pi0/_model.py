"""What the command's verbs find out about models and machines, as dictionaries: docs/usage.md."""
from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from . import _engine
from ._options import OpenOptions, Path

if TYPE_CHECKING:
    from typing_extensions import Unpack


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
