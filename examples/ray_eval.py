"""Episodes on the demo's table, over the actors of a Ray cluster.

    cmake --build build/release --target drive_table
    python ray_eval.py build/release/drive_table --episodes 50 [--actors 4] [--address ray://...]

Needs `pip install tendon-pi0[ray]`. Each episode runs beside an engine, its table in a process of
its own; the rows do not depend on how many actors there are, nor on one that dies meanwhile.
"""
import argparse
import functools
import subprocess
import time

import numpy as np

SIDE, ROWS, CAMERAS = 63, 5, ("top", "gripper")  # drive_table takes five actions at once


def episode(program, policy, seed):
    """(whether it was solved, the rows of all chunks) of the table with this seed."""
    with subprocess.Popen([program, str(seed), "reach", "seen"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as table:
        prompt = table.stdout.readline().decode().rstrip("\n")
        chunks = []
        while (end := table.stdout.read(1)[0]) == 0:
            state = np.frombuffer(table.stdout.read(12), np.float32)
            pictures = np.frombuffer(table.stdout.read(2 * SIDE * SIDE * 3), np.uint8)
            seen = dict(zip((f"observation.images.{camera}" for camera in CAMERAS),
                            pictures.reshape(2, SIDE, SIDE, 3)))
            actions = policy.infer({**seen, "observation.state": state, "prompt": prompt},
                                   seed=seed)["actions"]
            chunks.append(actions)
            table.stdin.write(np.ascontiguousarray(actions[:ROWS], np.float32).tobytes())
            table.stdin.flush()
        table.stdout.read()
    return end == 1, np.concatenate(chunks)


def main():
    import ray
    import tendon_pi0.ray

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="build/release/drive_table, at this path on every node")
    parser.add_argument("--checkpoint", default="demo")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--actors", type=int, help="default: as many as there are CPUs for")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--address", help="of a running cluster; default: one on this machine")
    given = parser.parse_args()
    ray.init(given.address)
    with tendon_pi0.ray.PolicyPool(given.checkpoint, actors=given.actors,
                                   threads=given.threads) as pool:
        begin = time.monotonic()
        results = list(pool.map(functools.partial(episode, given.program), range(given.episodes)))
        seconds = time.monotonic() - begin
        print(f"{sum(solved for solved, _ in results)} of {given.episodes} episodes solved, "
              f"{given.episodes / seconds:.1f} a second on {len(pool.actors)} actors")


if __name__ == "__main__":
    main()
