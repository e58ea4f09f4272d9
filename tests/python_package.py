"""python_package.py TENDON: tendon_pi0 as programs use it; run by python_wheel_test.py in an
environment that holds the wheel and NumPy."""
import inspect
import json
import os
import pathlib
import signal
import sys
import tempfile
import threading
import time
import unittest

import tendon_pi0
NUMPY_AT_IMPORT = "numpy" in sys.modules
import numpy as np  # noqa: E402  (whether the package needs it is looked at first)
from environment import ends, printed  # noqa: E402
from policy_server import Server  # noqa: E402
from tendon_pi0 import _engine, _options  # noqa: E402

SLOW = {"backend": "reference", "threads": 1}  # with 300 steps a call takes a second or more
TOP, STATE = "observation.images.top", "observation.state"


class Tensor:
    """What PyTorch's tensors look like from outside: DLPack and no buffer."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return self.device

    def contiguous(self):
        return Tensor(np.ascontiguousarray(self.array), self.device)


class Package(unittest.TestCase):
    def test_importing_it_loads_no_numpy(self):
        self.assertFalse(NUMPY_AT_IMPORT)

    def test_everything_public_says_what_it_is(self):
        for name in tendon_pi0.__all__:
            thing = getattr(tendon_pi0, name)
            self.assertTrue(inspect.getdoc(thing), name)
            for method, value in vars(thing).items() if inspect.isclass(thing) else ():
                if not method.startswith("_") and callable(value):
                    self.assertTrue(inspect.getdoc(value), f"{name}.{method}")

    def test_its_typed_options_are_those_of_the_engine(self):
        self.assertEqual(sorted(_options.OpenOptions.__annotations__),
                         sorted(_engine.option_names()))

    def test_its_version_is_the_commands(self):
        ends(0, f"tendon {tendon_pi0.__version__}\n", "version")


class Observations(unittest.TestCase):
    """How an observation may be given; pictures are read where they lie."""

    @classmethod
    def setUpClass(cls):
        cls.policy = tendon_pi0.Policy("demo", threads=1)
        cls.seen = tendon_pi0.demo_observation()
        cls.actions = cls.policy.infer(cls.seen)["actions"]

    def same(self, changed, what):
        got = self.policy.infer({**self.seen, **changed})["actions"]
        self.assertTrue(np.array_equal(got, self.actions), what)

    def test_planes_pixels_views_and_tensors_are_the_same_picture(self):
        rows = self.seen[TOP].copy()  # NumPy hands no array to DLPack that may not be written
        planes = np.ascontiguousarray(rows.transpose(2, 0, 1))
        wide = np.zeros((rows.shape[0], 2 * rows.shape[1], 3), np.uint8)
        wide[:, ::2] = rows
        for what, picture in {"planes": planes, "a view of planes": rows.transpose(2, 0, 1),
                              "every other pixel": wide[:, ::2], "a tensor": Tensor(planes),
                              "a strided tensor": Tensor(rows.transpose(2, 0, 1))}.items():
            self.same({TOP: picture}, what)

    def test_floats_in_0_to_1_are_the_bytes_they_were_made_of(self):
        floats = (self.seen[TOP].astype(np.float64) + 0.5) / 255
        for kind in (np.float32, np.float64):
            self.same({TOP: floats.clip(0, 1).astype(kind)}, kind)

    def test_lerobots_batch_of_one_is_an_observation(self):
        batch = {key: value[None] if isinstance(value, np.ndarray) else value
                 for key, value in self.seen.items()}
        batch["task"] = [batch.pop("prompt")]
        got = self.policy.infer(batch)["actions"]
        self.assertTrue(np.array_equal(got, self.actions))
        with self.assertRaisesRegex(tendon_pi0.RequestError, "a batch of 2.*infer_batch"):
            self.policy.infer({**self.seen, TOP: np.stack([self.seen[TOP]] * 2)})

    def test_states_of_any_type_of_number_are_read(self):
        state = [0.5, 0.25, 1.0]
        expected = self.policy.infer({**self.seen, STATE: np.array(state)})["actions"]
        for given in (state, tuple(state), np.array(state, np.float32), np.array(state, ">f8"),
                      [np.float32(v) for v in state], Tensor(np.array(state, np.float32))):
            got = self.policy.infer({**self.seen, STATE: given})["actions"]
            self.assertTrue(np.array_equal(got, expected), repr(given))

    def test_pictures_are_not_copied(self):
        for key, picture in {"rows": np.zeros((40, 60, 3), np.uint8),
                             "planes": np.zeros((3, 40, 60), np.uint8)}.items():
            self.assertEqual(_engine.picture_address({key: picture}, key), picture.ctypes.data)
            self.assertEqual(_engine.picture_address({key: Tensor(picture)}, key),
                             picture.ctypes.data)
        strided = np.zeros((40, 60, 6), np.uint8)[:, :, ::2]
        self.assertNotEqual(_engine.picture_address({"x": strided}, "x"), strided.ctypes.data)

    def test_nothing_of_an_observation_is_kept(self):
        picture = self.seen[TOP].copy()
        before = sys.getrefcount(picture)
        self.policy.infer({**self.seen, TOP: picture})
        with self.assertRaises(tendon_pi0.RequestError):
            self.policy.infer({TOP: picture})
        self.assertEqual(sys.getrefcount(picture), before)
        picture.resize(0, refcheck=False)  # would fail while its buffer is exported

    def test_what_is_no_value_is_refused_with_its_key(self):
        for value, piece in ((object(), "'x' is a Python object"), (2**70, "more than 64 bits"),
                             (np.zeros(2, complex), "complex numbers"),
                             (np.array([object()]), "Python objects"),
                             (Tensor(np.zeros(2), (2, 0)), "copy it to the CPU")):
            with self.assertRaisesRegex(tendon_pi0.RequestError, piece):
                self.policy.infer({**self.seen, "x": value})
        loop = {}
        loop["x"] = loop
        with self.assertRaisesRegex(tendon_pi0.RequestError, "nested deeper"):
            self.policy.infer(loop)
        with self.assertRaisesRegex(tendon_pi0.RequestError, "a key of .* is a Python int"):
            self.policy.infer({3: 4})


def wrong_requests(seen):
    picture = seen[TOP]
    yield {}
    yield {**seen, "prompt": None}
    for key, values in {
            TOP: (picture[:, :, 0], picture.astype(np.int32), picture.astype(np.float32), "text",
                  np.zeros((9000, 1, 3), np.uint8), np.zeros((0, 4, 3), np.uint8)),
            STATE: (np.zeros(2), np.zeros((2, 2)), np.array([0, np.nan, 1]), "text", [1, "a", 2]),
            "prompt": (3, ["a", "b"], ""),
            "seed": (-1, 0.5, "a", 2**60), "noise": (np.zeros((3, 5, 1)), np.zeros((10, 4)), 1),
            "num_samples": (0, 65, 1.5, "a"), "batch": ([seen], 3),
            "prev_chunk": (np.zeros((11, 3)), np.zeros((4, 2)), np.zeros((4, 3))),
            "inference_delay": (-1, 1000)}.items():
        for value in values:
            yield {**seen, key: value}
    yield {**seen, "prev_chunk": np.zeros((4, 3)), "inference_delay": 5}
    yield {**seen, "num_samples": 2, "noise": np.zeros((10, 5))}
    others = {key: value for key, value in seen.items() if key != TOP}
    yield {**others, "observation.images.tpo": picture}


class BehindServer(unittest.TestCase):
    def check_several(self, local, remote):
        """Samples of an observation, and batches."""
        seen = tendon_pi0.demo_observation()
        single = [local.infer(seen, seed=seed)["actions"] for seed in range(4)]
        other = local.infer({**seen, "prompt": "push it"}, seed=1)["actions"]
        rows = [{**seen, "num_samples": 2}, {**seen, "prompt": "push it", "seed": 1},
                {key: value[None] if key.startswith("observation") else value
                 for key, value in {**seen, "seed": 3}.items()}]
        for policy in (local, remote):
            several = policy.infer(seen, samples=2, seed=1)
            self.assertTrue(np.array_equal(several["actions"], single[1:3]), policy)
            chunks = [reply["actions"] for reply in policy.infer_batch(rows)]
            self.assertTrue(np.array_equal(chunks, [*single[:2], other, single[3]]), policy)
            chunks = [reply["actions"] for reply in policy.infer_batch(iter([seen] * 2), seed=2)]
            self.assertTrue(np.array_equal(chunks, [single[2]] * 2), policy)
        for wrong, piece in (([], "'batch' is"), ([seen, {}], "row 1 of 'batch': no picture"),
                             ([seen] * 65, "at most 64 chunks"), ([seen, 3], "row 1 of 'batch'"),
                             ([seen, {**seen, "prev_chunk": np.zeros((2, 3))}],
                              "row 1 of 'batch': 'inference_delay' is missing")):
            words = []
            for policy in (local, remote):
                with self.assertRaisesRegex(tendon_pi0.RequestError, piece) as error:
                    policy.infer_batch(wrong)
                words.append(str(error.exception))
            self.assertEqual(*words)

    def test_here_and_behind_a_server_the_actions_and_the_words_are_the_same(self):
        seen, local = tendon_pi0.demo_observation(), tendon_pi0.Policy("demo")
        previous = np.full((6, 3), 0.4)
        options = ({}, {"seed": 5}, {"noise": np.full((10, 5), 0.3)},
                   {"previous": previous, "inference_delay": 2, "execution_horizon": 5},
                   {"samples": 1}, {"samples": 3, "seed": 2, "previous": previous,
                                    "inference_delay": 2})
        with Server() as server, tendon_pi0.connect(f"127.0.0.1:{server.port}") as remote:
            for given in options:
                ours, theirs = local.infer(seen, **given), remote.infer(seen, **given)
                self.assertTrue(np.array_equal(ours["actions"], theirs["actions"]), given)
            self.assertGreater(theirs["round_trip_ms"], theirs["server_timing"]["infer_ms"])
            self.check_several(local, remote)
            refused = 0
            for request in wrong_requests(seen):
                words = []
                for policy in (local, remote):
                    with self.assertRaises(tendon_pi0.RequestError, msg=str(request)) as error:
                        policy.infer(request)
                    words.append(str(error.exception))
                self.assertEqual(*words)
                refused += 1
            self.assertGreater(refused, 25)
            said, ours = remote.metadata, local.metadata
            self.assertEqual(len(said.pop("fingerprint")), 16)  # of a server, which ran once
            self.assertEqual(said, {key: ours[key] for key in said})
            remote.reset()
        with self.assertRaisesRegex(tendon_pi0.NetworkError, "closed"):
            remote.infer(seen)
        with self.assertRaisesRegex(tendon_pi0.NetworkError, "cannot connect"):
            tendon_pi0.connect(f"127.0.0.1:{server.port}", timeout_s=2)

    def test_ctrl_c_ends_the_wait_for_a_server(self):
        with Server() as server:
            policy = tendon_pi0.connect(f"127.0.0.1:{server.port}", timeout_s=600)
            server.process.send_signal(signal.SIGSTOP)
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with self.assertRaises(KeyboardInterrupt):
                policy.infer(tendon_pi0.demo_observation())
            with self.assertRaisesRegex(tendon_pi0.NetworkError, "was lost"):
                policy.infer(tendon_pi0.demo_observation())  # nobody waits for a late reply


class Actions(unittest.TestCase):
    def test_they_are_those_of_the_command_bit_for_bit(self):
        seen = tendon_pi0.demo_observation()
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "chunk.npy"
            for model, precision, threads in (("demo", "f32", 1), ("demo", "bf16", 2),
                                              ("demo:pi05", "int8", 2)):
                ends(0, "", "run", model, "--precision", precision, "--seed", 7, "--out", out)
                policy = tendon_pi0.Policy(model, precision=precision, threads=threads)
                got = policy.infer({**seen, "seed": 3}, seed=7)
                self.assertEqual(got["actions"].dtype, np.float64)
                self.assertEqual(got["actions"].tobytes(), np.load(out).tobytes(), model)
                self.assertGreater(got["policy_timing"]["denoise_ms"], 0)
                self.assertEqual(got["warnings"], [])

    def test_options_of_a_call_reach_the_engine(self):
        policy, seen = tendon_pi0.Policy("demo"), tendon_pi0.demo_observation()
        plain = policy.infer(seen)["actions"]
        for options in ({"seed": 1}, {"steps": 2}, {"noise": np.zeros((len(plain), 5))},
                        {"previous": plain[3:] + 1, "inference_delay": 2}):
            self.assertFalse(np.array_equal(policy.infer(seen, **options)["actions"], plain),
                             options)
        with self.assertRaisesRegex(tendon_pi0.RequestError, "steps"):
            policy.infer(seen, steps=0)

    def test_an_absent_camera_is_a_warning(self):
        seen = tendon_pi0.demo_observation()
        del seen["observation.images.gripper"]
        self.assertIn("gripper", tendon_pi0.Policy("demo").infer(seen)["warnings"][0])

    def test_two_policies_do_not_disturb_each_other(self):
        seen = tendon_pi0.demo_observation()
        policies = [tendon_pi0.Policy(model, threads=2) for model in ("demo", "demo:pi05")]
        alone = [policy.infer(seen)["actions"] for policy in policies]
        self.assertFalse(np.array_equal(*alone))
        for _ in range(5):
            for policy, actions in zip(policies, alone):
                self.assertTrue(np.array_equal(policy.infer(seen)["actions"], actions))


class Threads(unittest.TestCase):
    def test_four_threads_on_one_policy_get_their_own_actions(self):
        policy, seen = tendon_pi0.Policy("demo", threads=2), tendon_pi0.demo_observation()
        alone = [policy.infer(seen, seed=seed)["actions"] for seed in range(4)]
        wrong = []

        def ask(seed):
            for _ in range(25):
                if not np.array_equal(policy.infer(seen, seed=seed)["actions"], alone[seed]):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_other_threads_run_meanwhile(self):
        policy = tendon_pi0.Policy("synthetic:pi0-small", **SLOW)
        seen, counted, done = grey(policy), 0, threading.Event()

        def ask():
            policy.infer(seen, steps=200)
            done.set()

        thread = threading.Thread(target=ask)
        thread.start()
        while not done.wait(0.001):
            counted += 1
        thread.join()
        self.assertGreater(counted, 20)

    def test_ctrl_c_ends_a_call_and_leaves_the_policy_usable(self):
        policy = tendon_pi0.Policy("synthetic:pi0-small", **SLOW)
        seen = grey(policy)
        begin = time.monotonic()
        policy.infer(seen, steps=300)
        whole = time.monotonic() - begin
        timer = threading.Timer(whole / 8, os.kill, (os.getpid(), signal.SIGINT))
        begin = time.monotonic()
        timer.start()
        with self.assertRaises(KeyboardInterrupt):
            policy.infer(seen, steps=300)
        self.assertLess(time.monotonic() - begin, 0.75 * whole)
        expected = tendon_pi0.Policy("synthetic:pi0-small", **SLOW).infer(seen)["actions"]
        self.assertTrue(np.array_equal(policy.infer(seen)["actions"], expected))

    def test_a_forked_process_is_told_to_open_its_own(self):
        policy, seen = tendon_pi0.Policy("demo", threads=2), tendon_pi0.demo_observation()
        expected = policy.infer(seen)["actions"]
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            said = "nothing"
            try:
                policy.infer(seen)
            except tendon_pi0.UsageError as error:
                said = str(error)
            del policy  # does not wait for threads that are not there
            own = tendon_pi0.Policy("demo", threads=2).infer(seen)["actions"]
            os.write(write, f"{np.array_equal(own, expected)} {said}".encode())
            os._exit(0)
        os.close(write)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        said = os.read(read, 4096).decode()
        os.close(read)
        self.assertRegex(said, "^True this policy was opened in process .* 'spawn'")
        self.assertTrue(np.array_equal(policy.infer(seen)["actions"], expected))


def grey(policy):
    card = policy.metadata
    pictures = {f"observation.images.{camera}": np.full((64, 64, 3), 128, np.uint8)
                for camera in card["cameras"]}
    return {**pictures, STATE: np.zeros(card["state_dim"]), "prompt": "fold the towel"}


class Models(unittest.TestCase):
    def test_faults_are_exceptions_of_their_kind(self):
        for kind, model, options in (
                (tendon_pi0.CheckpointError, "nowhere", {}),
                (tendon_pi0.UsageError, "demo", {"precision": "f16"}),
                (tendon_pi0.BackendError, "demo",
                 {"backend": "ttnn", "device": "chip", "ttnn_python": sys.executable}),
                (tendon_pi0.MemoryPlanError, "demo", {"max_memory": 1000})):
            with self.assertRaises(kind) as error:
                tendon_pi0.Policy(model, **options)
            self.assertIsInstance(error.exception, tendon_pi0.Error)
        with self.assertRaisesRegex(TypeError, "no option 'thread'; nearest: 'threads'"):
            tendon_pi0.Policy("demo", thread=2)
        for options in ({"threads": "2"}, {"threads": True}, {"adapt_to_pi": 1}, {"robot": 3},
                        {"lora_scale": True}, {"lora_scale": "1"}):
            with self.assertRaisesRegex(TypeError, f"option '{[*options][0]}'"):
                tendon_pi0.Policy("demo", **options)

    def test_loading_tells_how_far_it_is_and_can_be_ended(self):
        told = []
        tendon_pi0.Policy("demo", progress=lambda *told_now: told.append(told_now))
        self.assertEqual(told[0][0], 0)
        self.assertEqual({total for _, total in told}, {told[0][1]})  # an upper bound
        self.assertTrue(told[0][1] / 2 < told[-1][0] <= told[0][1], told[-1])
        self.assertGreater(len(told), 10)

        def stop(loaded, total):
            if loaded > total / 2:
                raise StopIteration("enough")

        with self.assertRaisesRegex(StopIteration, "enough"):
            tendon_pi0.Policy("demo", progress=stop)

    def test_verbs_give_what_the_command_prints_as_json(self):
        self.assertEqual(tendon_pi0.inspect("demo"), printed("inspect", "demo"))
        self.assertEqual(*([fact["what"] for fact in found["machine"]]
                           for found in (tendon_pi0.doctor(), printed("doctor"))))
        untimed = lambda v: v|{"modules": [m | {"ms": 0, "reference_ms": 0} for m in v["modules"]]}
        commands = untimed(printed("validate", "demo"))
        self.assertEqual(untimed(tendon_pi0.validate("demo")), commands)
        own = tendon_pi0.validate("demo", {**tendon_pi0.demo_observation(), "prompt": "push it"})
        self.assertTrue(own["passed"])
        self.assertNotEqual(untimed(own)["modules"], commands["modules"])
        self.assertNotIn("modules", tendon_pi0.validate("demo", health_only=True))

    def test_a_certificate_is_the_commands_and_compares_with_other_implementations(self):
        with tempfile.TemporaryDirectory() as folder:
            out, page = (pathlib.Path(folder) / name for name in ("c.json", "c.html"))
            said = tendon_pi0.certify("demo", count=2, out=out, html=page)
            self.assertEqual(said, printed("certify", "demo", "--count", 2))
            self.assertTrue(said["passed"])
            self.assertEqual(json.loads(out.read_text()), said)
            self.assertIn("</html>", page.read_text())
        other = tendon_pi0.Policy("demo", precision="f32")

        def slightly_off(observation, noise):
            return other.infer(observation, noise=noise)["actions"] + [0, 0, 0.5]

        said = tendon_pi0.certify("demo", against=slightly_off, against_name="a test", count=1)
        reference, test = said["compared"]
        self.assertEqual((reference["passed"], said["passed"]), (True, False))
        self.assertEqual((test["against"], test["passed"], test["stages"]), ("a test", False, []))
        self.assertEqual([action["passed"] for action in test["actions"]], [False, True, True])
        self.assertEqual(test["actions"][0]["action"], "action_2")
        self.assertAlmostEqual(test["actions"][0]["max_error"], 0.5, 1)
        with self.assertRaisesRegex(tendon_pi0.RequestError, "3 numbers for the stage 'velocity'"):
            tendon_pi0.certify("demo", count=1, against=lambda *_: {
                "actions": np.zeros((10, 3)), "stages": {"velocity": np.zeros(3)}})
        with self.assertRaisesRegex(tendon_pi0.RequestError, "2 numbers"):
            tendon_pi0.certify("demo", against=lambda *_: [1, 2])
        with self.assertRaisesRegex(ZeroDivisionError, "division"):
            tendon_pi0.certify("demo", against=lambda *_: 1 / 0)

    def test_a_converted_file_gives_the_same_actions(self):
        seen = tendon_pi0.demo_observation()
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "demo.safetensors"
            said = tendon_pi0.convert("demo", out, precision="int8")
            self.assertEqual(said["bytes"], out.stat().st_size)
            self.assertTrue(np.array_equal(
                tendon_pi0.Policy(out).infer(seen)["actions"],
                tendon_pi0.Policy("demo", precision="int8").infer(seen)["actions"]))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
