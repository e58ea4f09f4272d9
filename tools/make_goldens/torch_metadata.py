#!/usr/bin/env python3
"""torch_metadata.py OUT [lora]: a metadata.pt as openpi's train_pytorch.py writes it.

Stored as tests/data/torch/metadata.pt, made with torch 1.13: the values of a TrainConfig that
matter, and one of each kind of object that such a dictionary holds besides plain values.
"""
import collections
import enum
import pathlib
import sys

import torch


class Nothing:
    """Stands for flax.nnx's filter of the frozen weights."""

    def __init__(self):
        self.rest = [1, {"a": (2.5, None)}]


class Space(enum.Enum):
    JOINTS = 1


MODEL = {"dtype": "bfloat16", "paligemma_variant": "gemma_2b", "action_horizon": 15,
         "max_token_len": 120, "action_dim": 32, "pi05": True, "discrete_state_input": False,
         "pytorch_compile_mode": None}
CONFIG = {"name": "own", "model": MODEL, "freeze_filter": Nothing(), "space": Space.JOINTS,
          "path": pathlib.PurePosixPath("a/b"), "seen": {3, 4}, "big": 1 << 40, "rate": 2.5e-5,
          "order": collections.OrderedDict(a=1), "scale": torch.ones(2),
          "keys": ("a", "b", "c", "d"), "same": MODEL,
          "bytes": b"ab", "negative": -7, 3: "no text as key"}

if len(sys.argv) > 2:  # of openpi's pull request 854, LoRA in PyTorch; few values else
    LORA = {"enabled": True, "attn_rank": 2, "ffn_rank": 3, "attn_alpha": 5.0, "ffn_alpha": 1.5,
            "use_rslora": False, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"],
            "apply_to": "all", "train_vision_encoder": True}
    CONFIG = {"name": "lora", "model": {"action_horizon": 10}, "lora_config": LORA}
torch.save({"global_step": 30000, "config": CONFIG, "timestamp": 1.7e9}, sys.argv[1])
