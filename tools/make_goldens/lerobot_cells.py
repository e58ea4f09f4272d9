"""Tiny π0 and π0.5 checkpoints as one release of lerobot saves them, with its own actions.

    python lerobot_cells.py OUT     # in an environment with that release: see ../lerobot_matrix.py

Each cell is a folder of OUT: what save_pretrained wrote, tendon.json with the number of vision
heads (which no file of lerobot has), and cell.json: state, prompt, options and actions.
OUT/frames and OUT/noise.json are what every cell saw.
"""

import importlib
import importlib.metadata
import inspect
import json
import pathlib
import sys

import numpy as np
import torch

import make_goldens
import synthetic

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/data"
SIDE, HORIZON, STATE, ACTION, VISION_HEADS = 56, 4, 6, 5, 2
STEPS = 4
PROMPT = "pick up the red_block "
NAMES = ["shoulder", "elbow", "wrist", "gripper", "finger"]
CAMERAS = ["base_0_rgb", "left_wrist_0_rgb"]
SEEDS = {"pi0": 3001, "pi05": 3002}  # those of tests/data/golden/tiny-checkpoint-lerobot-*
MODES = ["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", "IDENTITY"]
SIZES = {
    "vision": dict(width=48, heads=VISION_HEADS, mlp=80, depth=3, patch=14, image=SIDE),
    "vlm": dict(width=64, mlp=128, heads=4, kv_heads=1, head_dim=16, depth=3, vocab=512),
    "expert": dict(width=32, mlp=64, heads=4, kv_heads=1, head_dim=16, depth=3),
}
RELEASE = importlib.metadata.version("lerobot")


def frame(camera, height, width):
    """[height, width, 3] U8: smooth, and no two pixels of a row the same."""
    y, x, c = np.indices((height, width, 3))
    return ((y * 3 + x * (2 + camera) + c * 40 + y * x // 24 + camera * 60) % 256).astype(np.uint8)


def statistics(dims, seed):
    """Of a feature: what a data set of lerobot tells, per dimension."""
    draw = lambda name: synthetic.uniform(f"statistics.{name}", (dims,), seed).astype(np.float64)
    centre, width = draw("centre") * 0.4, 0.6 + 0.4 * draw("width")
    steps = {"min": -1.3, "max": 1.4, "q01": -1.2, "q10": -0.8, "q50": 0.1, "q90": 0.9, "q99": 1.1}
    values = {name: centre + at * width for name, at in steps.items()}
    values |= {"mean": centre, "std": width * 0.5, "count": np.array([1000])}
    return {name: np.asarray(v, np.float32) for name, v in values.items()}


STATISTICS = {"observation.state": statistics(STATE, 11), "action": statistics(ACTION, 12)}


def small_tokenizer(*_, **__):
    """tests/data/tokenizer with the beginning that PaliGemma's tokenizer.json gives a text."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(DATA / "tokenizer/small_tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>",
                                   padding_side="right")


def module_of(policy, part):
    return importlib.import_module(f"lerobot.policies.{policy}.{part}_{policy}")


def shrink(policy):
    """The release's code, at tiny sizes and without a tokenizer from the network."""
    import transformers

    transformers.AutoTokenizer.from_pretrained = small_tokenizer
    make_goldens.resize(module_of(policy, "modeling"), SIZES)


def fill(network, seed):
    """Synthetic weights of `network`, whose names begin like openpi's."""
    depths = {tower: SIZES[tower]["depth"] for tower in SIZES}
    with torch.no_grad():
        for name, parameter in network.named_parameters(remove_duplicate=False):
            values = synthetic.tensor(name, tuple(parameter.shape), {"seed": seed}, depths)
            parameter.copy_(torch.from_numpy(values))


class Cell:
    """One checkpoint. `change`: what is other than lerobot's own defaults."""

    side, horizon, steps, dtype = SIDE, HORIZON, STEPS, "float32"
    prompt = PROMPT

    def __init__(self, policy, name, **change):
        self.policy, self.name, self.change = policy, name, change
        self.rename = change.pop("rename", {})
        self.peft = change.pop("peft", None)
        self.shape = change.pop("picture", (self.side, self.side))
        self.mode = change.pop("mode", None)
        self.steps = change.pop("steps", self.steps)
        self.cameras = change.pop("cameras", CAMERAS)

    def config(self):
        from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature

        module = module_of(self.policy, "configuration")
        Config = module.PI05Config if self.policy == "pi05" else module.PI0Config
        own = set(Config.__dataclass_fields__)
        if lacking := set(self.change) - own:
            raise NotImplementedError(f"lerobot {RELEASE} has no {', '.join(sorted(lacking))}")
        inputs = {f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, *self.shape))
                  for c in self.cameras}
        inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE,))
        config = Config(
            input_features=inputs,
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
            device="cpu", dtype=self.dtype, chunk_size=self.horizon, n_action_steps=self.horizon,
            num_inference_steps=self.steps, image_resolution=(self.side, self.side), **self.change)
        if self.mode:
            for kind in ("STATE", "ACTION"):
                config.normalization_mapping[kind] = NormalizationMode(self.mode)
        config.validate_features()
        return config

    def processors(self, config):
        stats = {name: {key: torch.from_numpy(v.copy()) for key, v in of.items()}
                 for name, of in STATISTICS.items()}
        make = getattr(module_of(self.policy, "processor"),
                       f"make_{self.policy}_pre_post_processors")
        before, after = make(config, stats)
        for step in before.steps:  # lerobot-train --rename_map sets it when it loads the steps
            if hasattr(step, "rename_map"):
                step.rename_map = self.rename
        return before, after

    def save(self, out):
        folder = out / f"{self.policy}-{self.name}"
        config = self.config()
        modeling = module_of(self.policy, "modeling")
        policy = (modeling.PI05Policy if self.policy == "pi05" else modeling.PI0Policy)(config)
        fill(policy.model, SEEDS[self.policy])
        before, after = self.processors(config)
        model = self.adapted(policy) if self.peft else policy
        model.eval().float()
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
        if self.peft:  # as lerobot-train does: PEFT saves the adapter alone
            model.config.save_pretrained(folder)
        before.save_pretrained(folder)
        after.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "tendon.json").write_text('{"vision": {"heads": %d}}\n' % VISION_HEADS)
        cell = self.run(policy, before, after, out)
        (folder / "cell.json").write_text(json.dumps(cell) + "\n")
        return cell

    def adapted(self, policy):
        if not hasattr(policy, "wrap_with_peft"):
            raise NotImplementedError(f"lerobot {RELEASE} has no PEFT")
        policy.config.pretrained_path = "lerobot/tiny"
        model = policy.wrap_with_peft(peft_cli_overrides=dict(self.peft))
        for name, value in model.named_parameters():  # as after a training
            if value.requires_grad:
                with torch.no_grad():
                    draw = synthetic.uniform(name, tuple(value.shape), 5)
                    value.copy_(torch.from_numpy(np.round(draw * 8) / 32))  # few bits: a small file
        return model

    def run(self, policy, before, after, out, turn=0):
        """What lerobot answers to the observation, whose pictures are others in each turn."""
        draw = synthetic.uniform("state", (STATE,), 21)
        renamed = {slot: own for own, slot in self.rename.items()}
        frames, seen = {}, {"observation.state": torch.from_numpy(draw.copy()), "task": self.prompt}
        for i, camera in enumerate(self.cameras):
            key = f"observation.images.{camera}"
            picture = frame(i + 2 * turn, *self.shape)
            file = f"{i + 2 * turn}-{self.shape[0]}x{self.shape[1]}.ppm"
            (out / "frames").mkdir(exist_ok=True)
            (out / "frames" / file).write_bytes(
                b"P6 %d %d 255\n" % self.shape[::-1] + picture.tobytes())
            name = renamed.get(key, key)
            seen[name] = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
            frames[name.removeprefix("observation.images.")] = file
        noise = torch.from_numpy(noise_of(policy.config.max_action_dim, self.horizon))
        given = {"noise": noise}
        if "kwargs" not in inspect.signature(policy.predict_action_chunk).parameters:  # 0.4.0
            policy.model.sample_noise, given = lambda *_: noise, {}
        with torch.no_grad():
            chunk = policy.predict_action_chunk(before(seen), **given)
            actions = after(chunk)[0].numpy()
        return {"state": draw.tolist(), "prompt": self.prompt, "frames": frames,
                "actions": actions.astype(np.float32).tolist()}


def noise_of(dims, horizon=HORIZON):
    u, v = ((synthetic.uniform(n, (1, horizon, dims), 31).astype(np.float64) + 1) / 2
            for n in ("noise.radius", "noise.angle"))
    return (np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)).astype(np.float32)


def cells():
    image = "observation.images."
    for policy in ("pi0", "pi05"):
        yield Cell(policy, "default")
        for mode in MODES:
            yield Cell(policy, mode.lower(), mode=mode)
        relative = dict(use_relative_actions=True, action_feature_names=NAMES)
        yield Cell(policy, "relative", **relative)
        yield Cell(policy, "relative-all", mode="MIN_MAX", relative_exclude_joints=[], **relative)
        yield Cell(policy, "renamed", rename={image + "front": image + CAMERAS[0],
                                              image + "wrist": image + CAMERAS[1]})
        yield Cell(policy, "own-names", cameras=["front", "side.left"])
        yield Cell(policy, "empty-cameras", empty_cameras=2)
        yield Cell(policy, "wide", picture=(48, 64))
        yield Cell(policy, "ten-steps", steps=10)  # up to 0.4.2 times were added up in float32
        yield Cell(policy, "lora", peft=dict(method_type="LORA", r=2))
        yield Cell(policy, "lora-whole", peft=dict(
            method_type="LORA", r=2, target_modules=["q_proj", "down_proj"],
            full_training_modules=["action_out_proj"]))


def save_first_pi0(out):
    """lerobot up to 0.3: π0 alone, whose statistics lie among its weights. Those are 0: tendon
    refuses the layout before it reads a value."""
    import transformers
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature

    transformers.AutoTokenizer.from_pretrained = small_tokenizer
    both = importlib.import_module("lerobot.policies.pi0.paligemma_with_expert")
    keys = dict(width="hidden_size", mlp="intermediate_size", heads="num_attention_heads",
                depth="num_hidden_layers", kv_heads="num_key_value_heads", head_dim="head_dim")

    def of(name, tower):
        construct = make_goldens.resized(getattr(both, name), SIZES)

        def small(config):
            for key, to in keys.items():
                setattr(getattr(config, "text_config", config), to, SIZES[tower][key])
            return construct(config)

        setattr(both, name, small)

    of("PaliGemmaForConditionalGeneration", "vlm")
    of("GemmaForCausalLM", "expert")
    modeling = module_of("pi0", "modeling")
    for mode in ["MEAN_STD", "MIN_MAX", "IDENTITY"]:
        config = module_of("pi0", "configuration").PI0Config(
            input_features={
                "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, SIDE, SIDE)),
                "observation.state": PolicyFeature(FeatureType.STATE, (STATE,))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
            device="cpu", chunk_size=HORIZON, n_action_steps=HORIZON, proj_width=32)
        for kind in ("STATE", "ACTION"):
            config.normalization_mapping[kind] = NormalizationMode(mode)
        stats = {name: {key: torch.from_numpy(v) for key, v in given.items()}
                 for name, given in STATISTICS.items()}
        policy = modeling.PI0Policy(config, stats)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.zero_()
        folder = out / f"pi0-{mode.lower()}"
        folder.mkdir(parents=True)
        policy.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "tendon.json").write_text('{"vision": {"heads": %d}}\n' % VISION_HEADS)
        (folder / "cell.json").write_text(json.dumps(
            {"state": [0.0] * STATE, "prompt": PROMPT, "frames": {"front": "0-56x56.ppm"},
             "actions": []}) + "\n")
        yield f"pi0-{mode.lower()}"


def main(out):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if RELEASE.startswith("0.3."):
        told = {name: "saved" for name in save_first_pi0(out)}
        told["pi05-default"] = f"lerobot {RELEASE} has no pi05"
        (out / "cells.json").write_text(json.dumps(told, indent=1) + "\n")
        return
    for policy in ("pi0", "pi05"):
        shrink(policy)
    told = {}
    for cell in cells():
        name = f"{cell.policy}-{cell.name}"
        try:
            cell.save(out)
            told[name] = "saved"
        except NotImplementedError as error:
            told[name] = str(error)
        print(f"{RELEASE} {name}: {told[name]}", flush=True)
    (out / "noise.json").write_text(json.dumps(noise_of(32)[0].tolist()) + "\n")
    (out / "cells.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    out_folder = pathlib.Path(sys.argv[1])
    out_folder.mkdir(parents=True, exist_ok=True)
    main(out_folder)
