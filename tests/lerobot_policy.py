"""lerobot_policy.py SOURCE DRIVE_TABLE: lerobot's policy type "tendon" beside lerobot's own
policies; run by python_wheel_test.py in an environment that has both.

The checkpoints are the demo's: lerobot's own classes at small sizes, and lerobot's own processors.
"""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import numpy as np
import torch

SOURCE = pathlib.Path(sys.argv[1])
sys.path[:0] = [str(SOURCE / part) for part in ("tools/compare_peers", "tools/train_demo",
                                                "examples")]
import certify  # noqa: E402
import lerobot_block  # noqa: E402
import lerobot_policy_tendon  # noqa: E402
import record_golden  # noqa: E402  (lerobot's classes at the demo's sizes)
import tendon_pi0  # noqa: E402
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig  # noqa: E402
from lerobot.policies.factory import get_policy_class, make_pre_post_processors  # noqa: E402
from lerobot.policies.rtc.configuration_rtc import RTCConfig  # noqa: E402
from lerobot.utils.import_utils import register_third_party_plugins  # noqa: E402
from lerobot_block import PUSHT, apart  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

RELATIVE_L2_MAX = 1e-5  # of float32 in two orders of summation
FOLDERS = {name: SOURCE / "assets/demo" / name for name in ("pi0", "pi05")}


def copy_of(name, to):
    return shutil.copytree(FOLDERS[name], to, dirs_exist_ok=True)


def with_longer_prompts(folder):
    """In place: three times as many tokens fit, which any prompt needs in the demo's vocabulary."""
    for file in (folder / "config.json", folder / "policy_preprocessor.json"):
        text = json.loads(file.read_text())
        for part in [text] if "type" in text else [step["config"] for step in text["steps"]]:
            for key in {"tokenizer_max_length", "max_length"} & set(part):
                part[key] *= 3
        file.write_text(json.dumps(text))
    return folder


def random_weights(name, to):
    """The checkpoint's folder with weights that were never trained."""
    generator = torch.Generator().manual_seed(5)
    copy_of(name, to)
    weights = load_file(to / "model.safetensors")
    for key, value in weights.items():
        if value.ndim == 2:
            spread = value.float().std()
            weights[key] = (spread * torch.randn(value.shape, generator=generator)).to(value.dtype)
    save_file(weights, to / "model.safetensors")
    return to


def for_pusht(folder):
    """The demo's checkpoint for lerobot's environment "pusht", in place: one camera, two numbers of
    state and action, in pixels."""
    config = json.loads((folder / "config.json").read_text())
    del config["input_features"]["observation.images.gripper"]
    for file in (folder / "config.json", *folder.glob("policy_*processor.json")):
        text = json.loads(file.read_text())
        for features in ([text["input_features"], text["output_features"]] if "type" in text
                         else [step["config"].get("features", {}) for step in text["steps"]]):
            features.pop("observation.images.gripper", None)
            for name in {"observation.state", "action"} & set(features):
                features[name]["shape"] = [2]
        file.write_text(json.dumps(text))
    for file in folder.glob("policy_*.safetensors"):
        statistics = load_file(file)
        for key, value in statistics.items():
            if value.shape == (3,):
                statistics[key] = PUSHT["std" if key.endswith("std") else "mean"] * torch.ones(2)
        save_file(statistics, file)
    return folder


def batch_of(rows):
    """As lerobot's preprocess_observation makes it of an environment's."""
    generator = np.random.default_rng(3)
    seen = tendon_pi0.demo_observation()
    batch = {}
    for key, value in seen.items():
        if "images" in key:
            pictures = np.stack([value] + [generator.integers(0, 256, value.shape, np.uint8)
                                           for _ in range(rows - 1)])
            batch[key] = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 255
    batch["observation.state"] = torch.tensor(generator.uniform(0.2, 0.8, (rows, 3))).float()
    batch["task"] = ["reach the red disc", "push the blue square to the left edge"][:rows]
    return batch


def tendon_policy(folder, **options):
    config = lerobot_policy_tendon.TendonConfig(checkpoint=str(folder), precision="f32", **options)
    return lerobot_policy_tendon.TendonPolicy(config)


class Lerobot(unittest.TestCase):
    def test_lerobot_finds_it_by_its_type(self):
        register_third_party_plugins()
        self.assertIn("tendon", PreTrainedConfig.get_known_choices())
        self.assertIs(get_policy_class("tendon"), lerobot_policy_tendon.TendonPolicy)
        before, after = make_pre_post_processors(
            lerobot_policy_tendon.TendonConfig(checkpoint=str(FOLDERS["pi0"])))
        batch, actions = batch_of(2), torch.randn(2, 3)
        self.assertTrue(torch.equal(before(dict(batch))["observation.state"],
                                    batch["observation.state"]))
        self.assertTrue(torch.equal(after(actions), actions))

    def test_its_actions_are_those_of_lerobots_own_policies(self):
        for name in FOLDERS:
            for trained in (True, False):
                with tempfile.TemporaryDirectory() as scratch:
                    folder = FOLDERS[name] if trained else random_weights(
                        name, pathlib.Path(scratch))
                    own = record_golden.Lerobot(folder)
                    batch, noise = batch_of(2), torch.randn(2, 10, 5)
                    with torch.no_grad():
                        expected = own.after(own.policy.predict_action_chunk(
                            own.before(dict(batch)), noise=noise)).numpy()
                    got = tendon_policy(folder).predict_action_chunk(batch, noise=noise).numpy()
                self.assertEqual(got.shape, (2, 10, 3))
                print(f"{name}, trained {trained}: relative L2 {apart(got, expected):.1e}")
                self.assertLess(apart(got, expected), RELATIVE_L2_MAX, f"{name} {trained}")

    def test_with_lerobots_processors_the_actions_are_the_same(self):
        own = record_golden.Lerobot(FOLDERS["pi0"])
        batch, noise = batch_of(2), torch.randn(2, 10, 5)
        plain = tendon_policy(FOLDERS["pi0"]).predict_action_chunk(dict(batch), noise=noise)
        policy = tendon_policy(FOLDERS["pi0"], normalize="lerobot")
        got = own.after(policy.predict_action_chunk(own.before(dict(batch)), noise=noise))
        self.assertLess(apart(got.numpy(), plain.numpy()), RELATIVE_L2_MAX)

    def test_normalising_twice_or_never_is_refused(self):
        own = record_golden.Lerobot(FOLDERS["pi0"])
        with self.assertRaisesRegex(ValueError, "would normalise again"):
            tendon_policy(FOLDERS["pi0"]).predict_action_chunk(own.before(batch_of(1)))
        with self.assertRaisesRegex(ValueError, "was not normalised"):
            tendon_policy(FOLDERS["pi0"], normalize="lerobot").predict_action_chunk(batch_of(1))
        with self.assertRaisesRegex(ValueError, "normalize='tendon'"):
            tendon_policy(FOLDERS["pi05"], normalize="lerobot")

    def test_the_same_torch_seed_draws_lerobots_noise(self):
        own, batch = record_golden.Lerobot(FOLDERS["pi0"]), batch_of(1)
        torch.manual_seed(7)
        with torch.no_grad():
            expected = own.after(own.policy.predict_action_chunk(own.before(dict(batch)))).numpy()
        torch.manual_seed(7)
        got = tendon_policy(FOLDERS["pi0"]).predict_action_chunk(batch).numpy()
        self.assertLess(apart(got, expected), RELATIVE_L2_MAX)

    def test_actions_come_one_by_one_and_chunks_after_n_action_steps(self):
        policy, batch = tendon_policy(FOLDERS["pi0"], n_action_steps=4), batch_of(2)
        torch.manual_seed(1)
        one_by_one = [policy.select_action(batch) for _ in range(9)]
        torch.manual_seed(1)
        chunks = [policy.predict_action_chunk(batch) for _ in range(3)]
        for step, action in enumerate(one_by_one):
            self.assertTrue(torch.equal(action, chunks[step // 4][:, step % 4]), step)
        self.assertFalse(torch.equal(chunks[0], chunks[1]))
        policy.reset()
        torch.manual_seed(1)
        self.assertTrue(torch.equal(policy.select_action(batch), chunks[0][:, 0]))

    def test_real_time_chunking_guides_as_in_lerobot(self):
        own, batch = record_golden.Lerobot(FOLDERS["pi0"]), batch_of(1)
        noise = torch.randn(1, 10, 5)
        own.policy.config.rtc_config = RTCConfig(execution_horizon=6)
        own.policy.init_rtc_processor()
        previous = torch.full((1, 6, 3), 0.4)
        statistics = load_file(next(FOLDERS["pi0"].glob("*step_0_unnormalizer*.safetensors")))
        normal = (previous - statistics["action.mean"]) / (statistics["action.std"] + 1e-8)
        given = {"inference_delay": 2, "execution_horizon": 6}
        with torch.enable_grad():
            expected = own.after(own.policy.predict_action_chunk(
                own.before(dict(batch)), noise=noise,
                prev_chunk_left_over=torch.nn.functional.pad(normal, (0, 2)), **given))
        policy = tendon_policy(FOLDERS["pi0"], rtc_config=RTCConfig(execution_horizon=6))
        got = policy.predict_action_chunk(batch, noise=noise, prev_chunk_left_over=previous,
                                          **given)
        plain = policy.predict_action_chunk(batch, noise=noise)
        self.assertGreater(apart(got.numpy(), plain.numpy()), 1e-3)
        self.assertLess(apart(got.numpy(), expected.detach().numpy()), 1e-4)
        with self.assertRaisesRegex(ValueError, "RTC is not supported for select_action"):
            policy.select_action(batch)

    def test_a_saved_configuration_opens_its_checkpoint(self):
        policy, batch = tendon_policy(FOLDERS["pi0"], n_action_steps=3), batch_of(1)
        with tempfile.TemporaryDirectory() as folder:
            policy.save_pretrained(folder)
            again = lerobot_policy_tendon.TendonPolicy.from_pretrained(folder)
        self.assertEqual(again.config.n_action_steps, 3)
        torch.manual_seed(2)
        expected = policy.predict_action_chunk(batch)
        torch.manual_seed(2)
        self.assertTrue(torch.equal(again.predict_action_chunk(batch), expected))

    def test_lerobots_evaluation_runs_it_in_closed_loop(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-B", SOURCE / "examples/lerobot_eval.py", sys.argv[2],
                 "--eval.n_episodes=4", f"--output_dir={folder}/out"], capture_output=True,
                text=True)
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
            info = json.loads(pathlib.Path(folder, "out/eval_info.json").read_text())
        self.assertEqual(info["overall"]["n_episodes"], 4)
        self.assertGreaterEqual(info["overall"]["pc_success"], 75)

    def test_lerobots_evaluation_of_a_real_environment_gets_lerobots_actions_at_every_step(self):
        """lerobot-eval in gym-pusht, two at once, with weights that were never trained."""
        for precision, bound in (("f32", RELATIVE_L2_MAX), ("bf16", 0.01)):
            with tempfile.TemporaryDirectory() as scratch:
                folder = for_pusht(random_weights("pi0", pathlib.Path(scratch)))
                chunks = lerobot_block.evaluate_in_turns(
                    record_golden.Lerobot(folder), folder, f"{scratch}/out",
                    f"--policy.precision={precision}", "--policy.n_action_steps=5",
                    "--eval.batch_size=2", "--env.episode_length=100", "--eval.n_episodes=2")
                info = json.loads(pathlib.Path(scratch, "out/eval_info.json").read_text())
            self.assertEqual(info["overall"]["n_episodes"], 2)
            distances = [chunk["relative_l2"] for chunk in chunks]
            print(f"pusht, {precision}: {len(distances)} chunks, relative L2 at most "
                  f"{max(distances):.1e}")
            self.assertEqual(len(distances), 20)
            self.assertLess(max(distances), bound)

    def test_a_certificate_can_be_against_lerobot(self):
        """examples/certify.py, with lerobot's classes at the demo's sizes and its tokenizer."""
        for name, precision in (("pi0", "f32"), ("pi0", "bf16"), ("pi05", "bf16")):
            record_golden.Lerobot(FOLDERS[name])
            with tempfile.TemporaryDirectory() as scratch:
                out = pathlib.Path(scratch, "c.json")
                folder = with_longer_prompts(copy_of(name, pathlib.Path(scratch)))
                arguments = ["certify.py", str(folder), "--lerobot", "--count=2",
                             f"--precision={precision}", f"--out={out}"]
                with mock.patch.object(sys, "argv", arguments):
                    self.assertEqual(certify.main(), 0)
                said = json.loads(out.read_text())
                self.assertIn("against lerobot", out.with_suffix(".html").read_text())
            reference, lerobot = said["compared"]
            self.assertTrue(said["passed"], said)
            self.assertIn("lerobot", lerobot["against"])
            self.assertEqual(len(reference["stages"]), 6)
            self.assertEqual({stage["stage"] for stage in lerobot["stages"]},
                             {"siglip", "velocity", "actions"})
            self.assertEqual(len(lerobot["actions"]), 3)
            for stage in lerobot["stages"]:
                print(f"{name} {precision} {stage['stage']}: relative L2 to lerobot "
                      f"{stage['relative_l2']:.1e}")
                self.assertGreater(stage["relative_l2"], 0)

    def test_a_certificate_is_not_against_weights_that_lerobot_could_not_load(self):
        record_golden.Lerobot(FOLDERS["pi0"])
        with tempfile.TemporaryDirectory() as scratch:
            folder = random_weights("pi0", pathlib.Path(scratch))
            file = folder / "model.safetensors"
            against = certify.lerobot_policy(str(folder))
            save_file({f"elsewhere.{key}": value for key, value in load_file(file).items()}, file)
            with self.assertRaisesRegex(ValueError, "has not loaded"):
                against({}, np.zeros((10, 5), np.float32))

    def test_wrong_options_are_refused(self):
        for options, piece in (({}, "either checkpoint"),
                               ({"checkpoint": "a", "url": "b"}, "either checkpoint"),
                               ({"checkpoint": "a", "normalize": "twice"}, "expected 'tendon'"),
                               ({"url": "a", "normalize": "lerobot"}, "by itself"),
                               ({"checkpoint": "a", "rtc_config": RTCConfig(
                                   max_guidance_weight=5)}, "max_guidance_weight")):
            with self.assertRaisesRegex(ValueError, piece):
                lerobot_policy_tendon.TendonConfig(**options)
        action = PolicyFeature(type=FeatureType.ACTION, shape=(7,))
        with self.assertRaisesRegex(ValueError, "has 3 actions, the environment or dataset 7"):
            tendon_policy(FOLDERS["pi0"], output_features={"action": action})


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
