"""ray_cluster.py SOURCE DRIVE_TABLE [TEST...]: tendon_pi0.ray and ray_serve on a cluster of two
nodes on this machine; run by python_wheel_test.py in an environment that has the wheel and Ray."""
import functools
import os
import pathlib
import signal
import sys
import threading
import time
import unittest

import numpy as np
import ray
import tendon_pi0
import tendon_pi0.ray
from openpi_client import websocket_client_policy
from ray import serve
from ray.cluster_utils import Cluster

SOURCE, TABLE = map(pathlib.Path, sys.argv[1:3])
sys.path.insert(0, str(SOURCE / "examples"))
from ray_eval import episode  # noqa: E402

EPISODES, CPUS = 200, 4  # of each node
NOT_NICE = {"worker_niceness": 0}  # Ray's 15 starves them where other tests run beside
QUICK = {"graceful_shutdown_timeout_s": 2}
on_table = functools.partial(episode, str(TABLE))


def pid_of(policy, _):
    return os.getpid()


def node_of(policy, _):
    return ray.get_runtime_context().get_node_id()


def running():
    """Replicas that serve."""
    return serve.status().applications["default"].deployments["tendon"].replica_states.get(
        "RUNNING", 0)


def ask_until_two():
    """A robot that asks without a pause, until there are two replicas or two minutes are over."""
    client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", 8000)
    card = client.get_server_metadata()
    seen = {f"observation.images.{camera}": np.zeros((64, 64, 3), np.uint8)
            for camera in card["cameras"]}
    end = time.monotonic() + 120
    while running() < 2 and time.monotonic() < end:
        client.infer({**seen, "observation.state": np.zeros(32), "prompt": "fold the towel"})


class RayCluster(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(initialize_head=True,
                              head_node_args={"num_cpus": CPUS, "_system_config": NOT_NICE})
        paths = {"PYTHONPATH": str(SOURCE / "examples")}  # where workers find ray_eval
        ray.init(cls.cluster.address, runtime_env={"env_vars": paths}, log_to_driver=False)

    @classmethod
    def tearDownClass(cls):
        ray.shutdown()
        cls.cluster.shutdown()

    def test_episodes_have_the_same_rows_also_when_an_actor_and_a_node_die(self):
        policy = tendon_pi0.Policy("demo", threads=1)
        begin = time.monotonic()
        expected = [on_table(policy, seed) for seed in range(EPISODES)]
        print(f"in one process: {EPISODES / (time.monotonic() - begin):.1f} episodes a second")
        node = self.cluster.add_node(num_cpus=CPUS)
        self.cluster.wait_for_nodes()
        with tendon_pi0.ray.PolicyPool("demo", actors=4) as pool:
            asked = [actor.call.remote(node_of, None) for actor in pool.actors]
            self.assertEqual(len(set(ray.get(asked))), 2, "the actors are not on both nodes")
            old = ray.get([actor.call.remote(pid_of, None) for actor in pool.actors])
            results = []
            for result in pool.map(on_table, range(EPISODES)):
                results.append(result)
                if len(results) == EPISODES // 4:
                    os.kill(old[0], signal.SIGKILL)
                if len(results) == EPISODES // 2:
                    self.cluster.remove_node(node, allow_graceful=False)
            new = ray.get([actor.call.remote(pid_of, None) for actor in pool.actors])
            self.assertGreaterEqual(len(set(new) - set(old)), 2, "nothing was started again")
            here = ray.get([actor.call.remote(node_of, None) for actor in pool.actors])
            self.assertEqual(len(set(here)), 1)
        self.assertEqual(len(results), EPISODES)
        for seed, ((solved, rows), (was_solved, same)) in enumerate(zip(results, expected)):
            self.assertEqual(solved, was_solved, seed)
            self.assertTrue(np.array_equal(rows, same), seed)
        self.assertGreater(sum(solved for solved, _ in results), 0.75 * EPISODES)

    def test_items_are_asked_for_when_there_is_room(self):
        taken = []

        def items():
            for i in range(40):
                taken.append(i)
                yield i

        with tendon_pi0.ray.PolicyPool("demo", actors=2) as pool:
            for done, item in enumerate(pool.map(lambda policy, i: i, items())):
                self.assertEqual(item, done)
                self.assertLessEqual(len(taken) - done, 2 * 2 + 1)
        self.assertEqual(len(taken), 40)

    def test_batches_of_many_environments_are_the_single_calls(self):
        seen, policy = tendon_pi0.demo_observation(), tendon_pi0.Policy("demo", threads=1)
        rows = [{**seen, "seed": i, "observation.state": np.array([0.5, 0.01 * i, 1.0])}
                for i in range(70)]
        for actors in (1, 2):
            with tendon_pi0.ray.PolicyPool("demo", actors=actors) as pool:
                begin = time.monotonic()
                chunks = pool.infer_batch(rows)
                print(f"{actors} actors: {len(rows) / (time.monotonic() - begin):.0f} chunks a "
                      "second")
                with self.assertRaisesRegex(tendon_pi0.RequestError, "row 0 of 'batch'"):
                    pool.infer_batch([{}])
        self.assertEqual(len(chunks), 70)
        for row, chunk in zip(rows, chunks):
            self.assertTrue(np.array_equal(policy.infer(row)["actions"], chunk["actions"]))

    def test_a_wrong_checkpoint_is_its_own_error(self):
        with self.assertRaisesRegex(tendon_pi0.CheckpointError, "nowhere is no folder"):
            tendon_pi0.ray.PolicyPool("nowhere", actors=1)


class Serve(unittest.TestCase):
    """After RayCluster, whose head node has gone then: a cluster of its own."""

    @classmethod
    def setUpClass(cls):
        ray.init(num_cpus=CPUS, log_to_driver=False, _system_config=NOT_NICE)

    @classmethod
    def tearDownClass(cls):
        serve.shutdown()
        ray.shutdown()

    def ask(self, **more):
        client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", 8000)
        reply = client.infer({**tendon_pi0.demo_observation(), **more})
        return client, reply["actions"]

    def test_stock_clients_are_answered_and_a_new_model_takes_over(self):
        from tendon_pi0 import ray_serve
        serve.run(ray_serve.app("demo", deployment=QUICK))
        expected = {model: tendon_pi0.Policy(model).infer(tendon_pi0.demo_observation())["actions"]
                    for model in ("demo", "demo:pi05")}
        client, actions = self.ask()
        self.assertEqual(client.get_server_metadata()["model"], "demo")
        self.assertTrue(np.array_equal(actions, expected["demo"]))
        with self.assertRaisesRegex(RuntimeError, "no picture"):
            client.infer({})
        self.assertTrue(np.array_equal(
            client.infer(tendon_pi0.demo_observation())["actions"], expected["demo"]))
        serve.run(ray_serve.app("demo:pi05", deployment=QUICK))  # returns when it is ready
        client, actions = self.ask()
        self.assertEqual(client.get_server_metadata()["model"], "demo:pi05")
        self.assertTrue(np.array_equal(actions, expected["demo:pi05"]))

    def test_replicas_follow_what_waits(self):
        from tendon_pi0 import ray_serve

        class Seen:
            capacity_adjusted_min_replicas, capacity_adjusted_max_replicas = 1, 3
            aggregated_metrics = {"waiting": {}}

        for waiting, replicas in (({}, 1), ({"a": 0.0}, 1), ({"a": 1.2, "b": 0.5}, 2),
                                  ({"a": 30.0}, 3)):
            Seen.aggregated_metrics = {"waiting": waiting}
            self.assertEqual(ray_serve.scale_by_waiting(Seen)[0], replicas)
        serve.run(ray_serve.app("synthetic:pi0-small", backend="reference", replicas=(1, 2),
                                deployment={**QUICK, "autoscaling_config": {
                                    "upscale_delay_s": 0.5, "look_back_period_s": 2}}))
        self.assertEqual(running(), 1)
        robots = [threading.Thread(target=ask_until_two) for _ in range(4)]
        for robot in robots:
            robot.start()
        for robot in robots:
            robot.join()
        self.assertEqual(running(), 2)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
