"""A policy in this process, and one behind a server. Both are what openpi-client calls a
BasePolicy: infer(observation) -> dict, and reset()."""
from __future__ import annotations

import os
import warnings as python_warnings
from typing import TYPE_CHECKING, Any, Iterable

from . import _engine, _progress
from ._options import OpenOptions, Path
from .errors import NetworkError, RequestError

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _additions(seed: Any, noise: Any, previous: Any, inference_delay: Any,
               execution_horizon: Any, samples: Any = None) -> dict[str, Any]:
    """What stands beside the observation, under the keys of the policy server's protocol."""
    given = {"seed": seed, "noise": noise, "prev_chunk": previous,
             "inference_delay": inference_delay, "execution_horizon": execution_horizon,
             "num_samples": samples}
    return {key: value for key, value in given.items() if value is not None}


def _one(observation: dict[str, Any]) -> dict[str, Any]:
    if isinstance(observation, dict) and "batch" in observation:
        raise RequestError("'batch' holds several observations: infer_batch() takes a list of them")
    return observation


def _stacked(reply: Any, samples: int | None) -> dict[str, Any]:
    """Several chunks of one observation as one reply."""
    if isinstance(reply, dict):
        if samples is not None:
            raise NetworkError("the server sent one chunk: it is none of tendon's, which alone "
                               "know num_samples")
        return reply
    import numpy as np
    return {**reply[0], "actions": np.stack([chunk["actions"] for chunk in reply])}


class Policy:
    """A π0 or π0.5 policy on this machine.

    Threads may share one: their calls take turns. Every result depends on the arguments alone; the
    same seed gives the same bytes, and those of `tendon run`."""

    def __init__(self, checkpoint: Path, *, progress: _progress.Progress | None = None,
                 **options: Unpack[OpenOptions]) -> None:
        """`checkpoint`: a folder of lerobot or openpi, a file of convert(), "demo", "demo:pi05" or
        "synthetic:pi0". `progress(loaded, at_most)` is called with bytes while weights load;
        without it tqdm shows a bar on a terminal. Raises CheckpointError, UsageError, BackendError
        or MemoryPlanError."""
        bar = None if progress else _progress.on_terminal()
        self._policy = _engine.LocalPolicy(os.fspath(checkpoint), dict(options), progress or bar)
        if bar:
            bar.close()
        for note in self.notes:
            if note.startswith("warning: "):
                python_warnings.warn(note.removeprefix("warning: "), stacklevel=2)

    def infer(self, observation: dict[str, Any], *, seed: int | None = None, noise: Any = None,
              steps: int | None = None, previous: Any = None, inference_delay: int | None = None,
              execution_horizon: int | None = None, samples: int | None = None) -> dict[str, Any]:
        """One observation in, a chunk of actions out.

        `observation`: what openpi's or lerobot's clients send a policy server, under the same keys:
        pictures uint8 in 0 to 255 or floats in [0, 1], [height, width, 3] or [3, height, width];
        the state in the robot's own units and order; "prompt" or "task". NumPy arrays or tensors on
        the CPU, also with lerobot's leading axis of one.

        seed: of the noise, 0 to 2**53; default 0. noise: itself, [horizon, model_action_dim].
        steps: Euler steps, 1 to 1000; default the model's own. previous: rows of the last chunk
        that were not executed when the observation was taken, [rows, action_dim] in the robot's
        units, with inference_delay: how many of them will be executed before the new chunk arrives;
        execution_horizon: rows that are guided at all, default 10. samples: so many chunks of the
        same observation, at most 64, with the noise of seed, seed + 1, ...: vision and prefill are
        computed once; the same as "num_samples" in the observation.

        Returns "actions", float64 [horizon, action_dim] (with samples: [samples, horizon,
        action_dim]) in the robot's units; "policy_timing", milliseconds per stage; "warnings".
        Raises RequestError in the words of the policy server."""
        additions = _additions(seed, noise, previous, inference_delay, execution_horizon, samples)
        return _stacked(self._policy.infer(_one(observation), additions, steps), samples)

    def infer_batch(self, observations: Iterable[dict[str, Any]], *, seed: int | None = None,
                    steps: int | None = None) -> list[dict[str, Any]]:
        """infer() of each observation, in one call: bit for bit what single calls give. At most 64;
        "policy_timing" is that of the whole call. Raises RequestError that names the row."""
        additions = _additions(seed, None, None, None, None)
        return self._policy.infer({"batch": list(observations)}, additions, steps)

    def reset(self) -> None:
        """A new episode begins. Nothing is kept from call to call, so nothing is to be done."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What the policy server tells its clients, and more: "robot", "cameras", "action_names",
        "action_horizon", "action_dim", "state_dim", "backend", "method", ..."""
        return self._policy.metadata()

    @property
    def notes(self) -> list[str]:
        """Decisions taken while opening, one sentence each."""
        return self._policy.notes()


class RemotePolicy:
    """A policy behind `tendon serve`, or another server of openpi's protocol."""

    def __init__(self, url: str, *, api_key: str = "", timeout_s: float = 10.0) -> None:
        """`url`: "ws://host:port", "host:port" or "host" (port 8000). `timeout_s`: to connect, and
        of every reply. Raises NetworkError when nobody answers."""
        self._policy = _engine.RemotePolicy(url, api_key, timeout_s)

    def infer(self, observation: dict[str, Any], *, seed: int | None = None, noise: Any = None,
              previous: Any = None, inference_delay: int | None = None,
              execution_horizon: int | None = None, samples: int | None = None) -> dict[str, Any]:
        """As Policy.infer; samples are for tendon's servers. Returns "actions", "policy_timing",
        "server_timing" (milliseconds) and "round_trip_ms". Raises RequestError with the server's
        words, and NetworkError when the connection is gone: connect anew. So it is after Ctrl-C."""
        additions = _additions(seed, noise, previous, inference_delay, execution_horizon, samples)
        return _stacked(self._policy.infer(_one(observation), additions), samples)

    def infer_batch(self, observations: Iterable[dict[str, Any]], *,
                    seed: int | None = None) -> list[dict[str, Any]]:
        """As Policy.infer_batch, in one message; for tendon's servers."""
        additions = _additions(seed, None, None, None, None)
        return self._policy.infer({"batch": list(observations)}, additions)

    def reset(self) -> None:
        """A new episode begins. The server keeps nothing that would have to be forgotten."""

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server said about its policy."""
        return self._policy.metadata()

    def close(self) -> None:
        """Ends the connection."""
        self._policy.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


connect = RemotePolicy
