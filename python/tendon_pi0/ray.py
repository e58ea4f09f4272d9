"""Policies on a Ray cluster: a pool of actors with an engine each. Ray Serve: tendon_pi0.ray_serve.

    import tendon_pi0.ray
    with tendon_pi0.ray.PolicyPool("CHECKPOINT", precision="bf16", threads=2) as pool:
        replies = pool.infer_batch(observations)         # of vectorised environments
        results = list(pool.map(run_episode, seeds))     # environments beside the engines

Needs `pip install tendon-pi0[ray]`; docs/scaling.md says what Ray does and what it does not."""
from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

from ._options import OpenOptions, Path
from ._policy import Policy

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ROWS_MAX = 64  # of one message
_ON_THE_WAY = 2  # items per actor: one is computed, one waits beside it


class PolicyActor:
    """What runs in a process of the cluster. A process that was started again opens its policy
    at the first call."""

    def __init__(self, checkpoint: str, options: dict[str, Any]) -> None:
        self._opened = checkpoint, options

    @functools.cached_property
    def policy(self) -> Policy:
        checkpoint, options = self._opened
        return Policy(checkpoint, **options)

    def call(self, function: Callable[[Policy, Any], Any], item: Any) -> Any:
        """function(policy, item)."""
        return function(self.policy, item)


class PolicyPool:
    """Actors with a policy each, spread over the nodes of the cluster that this process is
    connected to. One that dies, or whose node does, is started again where there is room, and what
    it was computing is computed again: results must depend on the arguments alone, as infer's."""

    def __init__(self, checkpoint: Path, *, actors: int | None = None, threads: int = 1,
                 **options: Unpack[OpenOptions]) -> None:
        """`checkpoint`: as Policy takes it; a file or folder must lie at that path on every node.
        Processes of one node share the pages of a file of convert(). `threads`: of each actor, and
        the CPUs that Ray reserves for it; `actors`: as many as there are CPUs for, if absent.
        Returns when all have opened it. Raises what Policy raises."""
        import ray
        if not ray.is_initialized():
            ray.init()
        if actors is None:
            actors = max(1, int(ray.cluster_resources().get("CPU", 0)) // threads)
        remote = ray.remote(PolicyActor).options(
            num_cpus=threads, max_restarts=-1, max_task_retries=-1, scheduling_strategy="SPREAD")
        self.actors = [remote.remote(os.fspath(checkpoint), {**options, "threads": threads})
                       for _ in range(actors)]
        self.metadata = ray.get([actor.call.remote(lambda policy, _: policy.metadata, None)
                                 for actor in self.actors])[0]

    def map(self, function: Callable[[Policy, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """function(policy, item) of each item, beside the engines; the results in the order of the
        items. Two items per actor are on the way, the next is asked for when a result is taken. An
        exception of the function comes out in place of its result."""
        from ray.util import ActorPool
        slots = ActorPool(_ON_THE_WAY * self.actors)
        for item in items:
            if not slots.has_free():
                yield slots.get_next()
            slots.submit(lambda actor, item: actor.call.remote(function, item), item)
        while slots.has_next():
            yield slots.get_next()

    def infer_batch(self, observations: Iterable[dict[str, Any]], *, seed: int | None = None,
                    steps: int | None = None) -> list[dict[str, Any]]:
        """As Policy.infer_batch, of any number: each actor computes parts of at most 64. The row
        that a RequestError names is that of its part."""
        every = list(observations)
        rows = max(1, min(_ROWS_MAX, math.ceil(len(every) / len(self.actors))))
        parts = (every[begin:begin + rows] for begin in range(0, len(every), rows))
        chunks = self.map(
            lambda policy, part: policy.infer_batch(part, seed=seed, steps=steps), parts)
        return [chunk for part in chunks for chunk in part]

    def close(self) -> None:
        """Ends the actors."""
        import ray
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []

    def __enter__(self) -> PolicyPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
