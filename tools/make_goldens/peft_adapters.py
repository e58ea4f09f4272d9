#!/usr/bin/env python3
"""peft_adapters.py OUT: adapters as PEFT saves them, and the weights that PEFT itself merges.

A few modules of a pi0 policy under their real names, tiny; one folder per kind of adapter with
PEFT's two files and merged.safetensors, beside the base that all of them share. Stored as
tests/data/peft, made with peft 0.14.0 and torch 1.13 (CPU, float32).
"""
import json
import pathlib
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

EXPERT = "model.paligemma_with_expert.gemma_expert.model.layers.0.self_attn."
TOWER = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model."
LAYER = TOWER + "encoder.layers.0.mlp."
PATCH = TOWER + "embeddings.patch_embedding"
MODULES = {
    EXPERT + "q_proj": lambda: torch.nn.Linear(6, 8, bias=False),
    EXPERT + "v_proj": lambda: torch.nn.Linear(6, 4, bias=False),
    LAYER + "fc1": lambda: torch.nn.Linear(5, 7),
    PATCH: lambda: torch.nn.Conv2d(3, 4, kernel_size=2, stride=2),
    "model.state_proj": lambda: torch.nn.Linear(3, 6),
}
LINEAR = ["q_proj", "v_proj", "fc1"]
CASES = {
    "plain": dict(r=2, lora_alpha=6, target_modules=LINEAR),
    "rslora": dict(r=4, lora_alpha=3, target_modules=LINEAR, use_rslora=True),
    "patterns": dict(r=2, lora_alpha=8, target_modules=LINEAR, rank_pattern={"v_proj": 3},
                     alpha_pattern={EXPERT + "q_proj": 5, "mlp.fc1": 1}),
    "modules_to_save": dict(r=2, lora_alpha=2, target_modules=["q_proj"], bias="lora_only",
                            modules_to_save=["state_proj"]),
    "dora": dict(r=2, lora_alpha=4, target_modules=LINEAR, use_dora=True),
    # A scale of 1: this release merges the bias without the scale that its forward pass applies.
    "lora_bias": dict(r=2, lora_alpha=2, target_modules=["fc1"], lora_bias=True),
    "bias": dict(r=2, lora_alpha=5, target_modules=["q_proj", "fc1"], bias="all"),
    "convolution": dict(r=2, lora_alpha=3, target_modules=["patch_embedding"]),
}


class Policy(torch.nn.Module):
    """The named modules in a tree, as lerobot's PI0Policy has them."""

    def __init__(self):
        super().__init__()
        for path, make in MODULES.items():
            *parents, leaf = path.split(".")
            node = self
            for name in parents:
                if not hasattr(node, name):
                    node.add_module(name, torch.nn.Module())
                node = getattr(node, name)
            node.add_module(leaf, make())

    def forward(self, x):
        return x


def main(out):
    torch.manual_seed(7)
    base = Policy()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "base.safetensors")
    for case, settings in CASES.items():
        policy = Policy()
        policy.load_state_dict(weights)
        model = get_peft_model(policy, LoraConfig(**settings))
        with torch.no_grad():  # as after a training: nothing that trains is where it began
            for name, value in model.named_parameters():
                if value.requires_grad:
                    value += 0.3 * torch.rand_like(value) - 0.1
        folder = out / case
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])  # a set, in no order
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
        merged = model.merge_and_unload().state_dict()
        changed = {name: value for name, value in merged.items()
                   if not torch.equal(value, weights[name])}
        save_file({name: value.clone() for name, value in changed.items()},
                  folder / "merged.safetensors")
        print(case, sorted(load_file(folder / "adapter_model.safetensors")), sorted(changed))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
