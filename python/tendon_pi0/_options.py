"""How a model is opened: the keywords of Policy, inspect, validate, convert and doctor."""
from __future__ import annotations

from os import PathLike
from typing import TypedDict, Union

Path = Union[str, "PathLike[str]"]


class OpenOptions(TypedDict, total=False):
    """What is absent or None is decided by the model and the machine (docs/usage.md)."""
    backend: str | None  # "cpu" (default), "reference", "ttnn", "cuda" or "auto"
    precision: str | None  # cpu: "bf16" (default), "f32", "int8"
    threads: int | None  # 0 or absent: one per core; never changes a result
    isa: str | None  # cpu: instruction set; absent: the fastest, by measurement
    config: Path | None  # sizes and robot as a JSON file, or an openpi training config by name
    tokenizer: Path | None  # paligemma_tokenizer.model or tokenizer.json
    statistics: Path | None  # openpi's norm_stats.json, or "none"
    robot: str | None  # "aloha", "droid", "libero" or "lerobot"
    asset: str | None  # which assets/<id> of an openpi checkpoint
    base: Path | None  # of an adapter: the folder of the model that it was trained on
    lora_scale: float | None  # of an adapter whose files do not tell; 0 leaves any adapter out
    default_prompt: str | None  # for observations without one
    state_in_prompt: bool | None  # pi0.5: write the state into the prompt
    pad_state_in_prompt: bool | None  # pi0.5 checkpoints of lerobot 0.4
    dark_bars: bool | None  # around pictures that are not square, of lerobot 0.4
    adapt_to_pi: bool | None  # False: an ALOHA's joints and grippers stay as they are
    fallback: str | None  # "reference": operations that the backend lacks run there
    device: str | None  # ttnn: "fake", "sim" or "chip"; cuda: number of the GPU
    ttnn_python: Path | None
    ttnn_sim: Path | None
    grid: str | None  # ttnn, device "fake": columns by rows of cores, "8x7"
    device_id: int | None  # ttnn: the library's number of the chip
    fidelity: str | None  # ttnn: "lofi", "hifi2", "hifi3" or "hifi4"
    memory: str | None  # ttnn: "dram", "l1" or "auto" (default)
    on_device: str | None  # ttnn: "patches", "times" or both: what the host makes by default
    weights_seed: int | None  # of synthetic models
    max_memory: int | None  # bytes; a model that needs more is a MemoryPlanError
