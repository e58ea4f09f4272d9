"""Runs a trained checkpoint in lerobot, in closed loop with the table.

    python record_golden.py CHECKPOINT DRIVE_TABLE --golden OUT.safetensors --seed 3 --verb push
    python record_golden.py CHECKPOINT DRIVE_TABLE --episodes 50

The first form stores one episode for tests: per chunk the noise [10, 5], the state [3] and the
actions [10, 3] that lerobot's own PI0Policy or PI05Policy answers in float32. The second prints
success rates.
"""

import argparse
import json
import pathlib
import subprocess

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

import demonstrations
import network

ROWS, SIDE = 5, 63


class Lerobot:
    """The checkpoint behind lerobot's own pre- and postprocessor."""

    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        self.name = config["type"]
        meta = {
            "image": config["image_resolution"][0],
            "cameras": [
                k.removeprefix("observation.images.")
                for k in config["input_features"]
                if k.startswith("observation.images.")
            ],
            "state_dim": config["input_features"]["observation.state"]["shape"][0],
            "action_dim": config["output_features"]["action"]["shape"][0],
            "horizon": config["chunk_size"],
        }
        self.cameras = meta["cameras"]
        tokenizer = (folder / "tokenizer/tokenizer.model").read_bytes()
        padded = demonstrations.PaddedTokenizer(tokenizer)
        self.policy = network.build_policy(self.name, padded.model.vocab_size(), meta)
        weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        missing, unexpected = self.policy.load_state_dict(weights, strict=False)
        wrong = [k for k in missing if "lm_head" not in k and "embed_tokens" not in k]
        if wrong or unexpected:
            raise ValueError(f"missing {wrong}, unexpected {unexpected}")
        self.policy.eval()
        stats = {}
        for file in folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors"):
            for key, value in load_file(file).items():
                feature, _, name = key.rpartition(".")
                stats.setdefault(feature, {})[name] = value
        self.before, self.after = demonstrations.make_processors(
            self.name, self.policy.config, stats, padded
        )

    def chunk(self, pictures, state, prompt, noise):
        batch = {
            f"observation.images.{camera}": torch.from_numpy(picture.copy())
            .permute(2, 0, 1)[None]
            .float()
            / 255
            for camera, picture in zip(self.cameras, pictures, strict=True)
        }
        batch |= {"observation.state": torch.from_numpy(state.copy())[None], "task": [prompt]}
        with torch.no_grad():
            actions = self.policy.predict_action_chunk(
                self.before(batch), noise=torch.from_numpy(noise)[None]
            )
        return self.after(actions)[0].numpy()


def episode(lerobot, table, seed, verb, pairs):
    """One episode's stored tensors, and whether it was solved."""
    program = subprocess.Popen(
        [table, str(seed), verb, pairs], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    prompt = program.stdout.readline().decode().rstrip("\n")
    random = np.random.default_rng(seed)
    config = lerobot.policy.config
    noises, states, chunks = [], [], []
    while True:
        end = program.stdout.read(1)[0]
        state = np.frombuffer(program.stdout.read(12), np.float32)
        pictures = np.frombuffer(program.stdout.read(2 * SIDE * SIDE * 3), np.uint8)
        if end:
            break
        shape = (config.chunk_size, config.max_action_dim)
        noise = random.standard_normal(shape).astype(np.float32)
        actions = lerobot.chunk(pictures.reshape(2, SIDE, SIDE, 3), state, prompt, noise)
        program.stdin.write(np.ascontiguousarray(actions[:ROWS], np.float32).tobytes())
        program.stdin.flush()
        noises.append(noise)
        states.append(state)
        chunks.append(actions)
    program.wait()
    tensors = {"noise": np.stack(noises), "state": np.stack(states), "actions": np.stack(chunks)}
    return prompt, tensors, end == 1


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("--golden", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verb", choices=("reach", "push"))
    parser.add_argument("--pairs", choices=("seen", "unseen"), default="seen")
    parser.add_argument("--episodes", type=int, default=1)
    o = parser.parse_args()
    lerobot = Lerobot(o.checkpoint)
    verbs = [o.verb] if o.verb else ["reach", "push"]
    for verb in verbs:
        solved = 0
        for seed in range(o.seed, o.seed + o.episodes):
            prompt, tensors, done = episode(lerobot, o.table, seed, verb, o.pairs)
            solved += done
            if o.golden:
                about = {"seed": str(seed), "verb": verb, "pairs": o.pairs, "prompt": prompt}
                save_file(tensors, o.golden, about | {"solved": str(int(done))})
                end = "solved" if done else "NOT solved"
                print(f"{prompt}: {len(tensors['noise'])} chunks, {end}")
        print(f"{verb}, {o.pairs} pairs: {solved} of {o.episodes} solved")


if __name__ == "__main__":
    main()
