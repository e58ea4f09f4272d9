"""Synthetic weights v1 in NumPy: the formula of src/checkpoint/synthetic.h, bit for bit."""

import math

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
TOWER = "paligemma_with_expert.paligemma.model.vision_tower."
EXPERT = "paligemma_with_expert.gemma_expert."
TABLE = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"


def uniform(name, shape, seed):
    """float32 in [-1, 1), a function of the name, the seed and the element's index alone."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    key = np.uint64(h ^ (seed * GAMMA & MASK))
    z = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(GAMMA) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(
        shape
    )


def offset_and_scale(name, shape, depths):
    base = math.sqrt(3.0 / math.prod(shape[1:]))
    end = ".".join(name.split(".")[-2:])
    tower = "vision" if name.startswith(TOWER) else "expert" if name.startswith(EXPERT) else "vlm"
    residual = math.sqrt(2.0 * depths[tower])
    if end == "dense.bias":
        return 0.0, 0.8
    if end.endswith(".bias"):
        return 0.0, 0.1
    if end in ("layer_norm1.weight", "layer_norm2.weight", "post_layernorm.weight"):
        return 1.0, 0.1
    if len(shape) == 1:
        return 0.0, 0.1
    if end == "position_embedding.weight":
        return 0.0, 0.5
    if end == "dense.weight":
        return 0.0, 2.0 * base
    if end in ("q_proj.weight", "k_proj.weight"):
        return 0.0, 1.5 * base
    if end == "o_proj.weight" and tower == "expert":
        return 0.0, 4.0 * base / residual
    if end in ("out_proj.weight", "o_proj.weight"):
        return 0.0, 3.0 * base / residual
    if end in ("fc2.weight", "down_proj.weight"):
        return 0.0, 1.5 * base / residual
    if name == "action_in_proj.weight":
        return 0.0, 0.5 * base
    if name == "state_proj.weight":
        return 0.0, 2.0 * base
    return 0.0, base


def tensor(name, shape, weights, depths):
    """One parameter. `weights`: the object of that name in a case's config.json."""
    if name.endswith("paligemma.lm_head.weight"):
        name = TABLE
    offset, scale = offset_and_scale(name, shape, depths)
    w = uniform(name, shape, weights["seed"]) * np.float32(scale)
    if offset:
        w += np.float32(offset)
    if weights.get("round") == "bf16":
        b = w.view(np.uint32)
        b = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        w = b.view(np.float32)
    return w
