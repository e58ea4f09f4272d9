"""A policy as a Ray Serve application: a WebSocket in the words of `tendon serve`.

    import ray.serve, tendon_pi0.ray_serve
    ray.serve.run(tendon_pi0.ray_serve.app("CHECKPOINT", precision="bf16", replicas=(1, 4)))

Needs `pip install tendon-pi0[ray]`; docs/scaling.md says what Serve does to sockets."""
from __future__ import annotations

import asyncio
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from . import _engine
from ._options import OpenOptions, Path

if TYPE_CHECKING:
    from typing_extensions import Unpack

async def _healthz(_: Request) -> PlainTextResponse:
    return PlainTextResponse("OK\n")


async def _robot(socket: WebSocket) -> None:
    """One robot: a greeting, then an answer to each message."""
    replica = serve.get_replica_context().servable_object
    policy = replica.policy
    await socket.accept()
    connection = policy.connect()
    try:
        await socket.send_bytes(policy.greeting())
        while True:
            message = await socket.receive_bytes()
            reply, is_text, code = await asyncio.get_running_loop().run_in_executor(
                replica.threads, policy.answer, connection, message)
            await (socket.send_text(reply.decode("utf-8", "replace")) if is_text
                   else socket.send_bytes(reply))
            if code is not None:
                await socket.close(code)
                return
    except WebSocketDisconnect:
        pass


@serve.ingress(Starlette(routes=[Route("/healthz", _healthz), WebSocketRoute("/", _robot)]))
class Replica:
    """One process with a policy; ready once that has run."""

    def __init__(self, checkpoint: str, sockets_max: int, options: dict[str, Any]) -> None:
        self.policy = _engine.Answering(checkpoint, options)
        self.threads = ThreadPoolExecutor(sockets_max)

    def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that raises."""
        if failure := self.policy.failure():
            raise RuntimeError(failure)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What scale_by_waiting looks at."""
        return {"waiting": self.policy.waiting()}


def scale_by_waiting(seen: Any) -> tuple[int, dict[str, Any]]:
    """Serve's number of replicas: one per message that waits or is being answered, on average over
    the look-back period. Serve's own measure counts sockets, which robots keep open."""
    waiting = sum((seen.aggregated_metrics or {}).get("waiting", {}).values())
    return max(seen.capacity_adjusted_min_replicas,
               min(seen.capacity_adjusted_max_replicas, math.ceil(waiting))), {}


def app(checkpoint: Path, *, threads: int = 1, replicas: int | tuple[int, int] = 1,
        deployment: dict[str, Any] | None = None,
        **options: Unpack[OpenOptions]) -> serve.Application:
    """An application for `ray.serve.run`: the WebSocket is at its route, GET healthz beside it.

    `replicas`: how many processes, or (fewest, most), between which scale_by_waiting decides. Each
    reserves `threads` CPUs and takes 64 robots. One whose policy fails three times in a row is
    replaced. `serve.run` with another checkpoint replaces them one after the other; an old one
    keeps its sockets for 20 s, then they are cut and robots connect anew. `deployment`: options of
    serve.deployment, to have it otherwise (max_ongoing_requests, graceful_shutdown_timeout_s,
    autoscaling_config, ...)."""
    given = {"max_ongoing_requests": 64, "ray_actor_options": {"num_cpus": threads},
             **(deployment or {})}
    if isinstance(replicas, tuple):
        given["autoscaling_config"] = {
            "min_replicas": replicas[0], "max_replicas": replicas[1],
            "policy": {"policy_function": "tendon_pi0.ray_serve:scale_by_waiting"},
            **given.get("autoscaling_config", {})}
    else:
        given["num_replicas"] = replicas
    return serve.deployment(name="tendon", **given)(Replica).bind(
        os.fspath(checkpoint), given["max_ongoing_requests"], {**options, "threads": threads})
