"""lerobot's policy type "tendon"."""
from __future__ import annotations

from collections import deque
from typing import Any

import tendon_pi0
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from .configuration_tendon import TendonConfig

_SEEDS = 2**53  # doubles have gaps beyond


class TendonPolicy(PreTrainedPolicy):
    """A π0 or π0.5 checkpoint in the tendon engine, or behind a policy server. Inference only."""

    config_class = TendonConfig
    name = "tendon"

    def __init__(self, config: TendonConfig, **_: Any) -> None:
        super().__init__(config)
        if config.url:
            self._policy = tendon_pi0.connect(config.url, timeout_s=60)
        else:
            statistics = "none" if config.normalize == "lerobot" else None
            if statistics:
                _check_that_lerobot_can_normalise(config.checkpoint)
            self._policy = tendon_pi0.Policy(config.checkpoint, precision=config.precision,
                                             threads=config.threads, statistics=statistics,
                                             default_prompt=config.default_prompt)
        self._card = self._policy.metadata
        wanted = config.output_features.get(ACTION) if config.output_features else None
        actions = len(self._card["action_names"])
        if wanted and actions and wanted.shape[0] != actions:
            raise ValueError(f"the checkpoint has {actions} actions, the environment or dataset "
                             f"{wanted.shape[0]}")
        self.reset()

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque()
        self._policy.reset()

    def supports_rtc(self) -> bool:
        return True

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None,
                             inference_delay: int | None = None,
                             prev_chunk_left_over: Tensor | None = None,
                             execution_horizon: int | None = None, **_: Any) -> Tensor:
        """[batch, horizon, action_dim], float32. The noise is drawn as lerobot's policies draw it,
        so that torch.manual_seed gives the same. The arguments of RTC are lerobot's."""
        rtc: dict[str, Any] = {}
        if prev_chunk_left_over is not None:
            left = prev_chunk_left_over.detach().cpu().double()
            rtc = {"previous": left[0] if left.ndim == 3 else left,
                   "inference_delay": inference_delay or 0,
                   "execution_horizon": execution_horizon or self._rtc().execution_horizon}
        seen = self._observations(batch)
        chunks = [self._policy.infer(one, **rtc, **given)["actions"]
                  for one, given in zip(seen, self._noises(len(seen), noise))]
        return torch.stack([torch.from_numpy(chunk).float() for chunk in chunks])

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **options: Any) -> Tensor:
        """[batch, action_dim]: the next action of the chunk, a new one after n_action_steps."""
        if self.config.rtc_config is not None and self.config.rtc_config.enabled:
            raise ValueError("RTC is not supported for select_action, use it with "
                             "predict_action_chunk")
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **options)[:, : self.config.n_action_steps]
            self._queue.extend(chunk.transpose(0, 1))
        return self._queue.popleft()

    def _rtc(self) -> RTCConfig:
        return self.config.rtc_config or RTCConfig()

    def _noises(self, count: int, noise: Tensor | None) -> list[dict[str, Any]]:
        if "model_action_dim" not in self._card:  # behind a server
            if noise is not None:
                return [{"noise": one} for one in noise.detach().cpu().float()]
            return [{"seed": int(seed)} for seed in torch.randint(_SEEDS, (count,))]
        if noise is None:
            shape = (count, self._card["action_horizon"], self._card["model_action_dim"])
            noise = torch.normal(mean=0.0, std=1.0, size=shape, dtype=torch.float32)
        return [{"noise": one} for one in noise.detach().cpu().float()]

    def _observations(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """One dictionary per row of the batch; pictures as the bytes that they were made of."""
        tokens = OBS_LANGUAGE_TOKENS in batch
        if tokens and self.config.normalize == "tendon":
            raise ValueError(
                "this batch went through a checkpoint's own preprocessor, which normalises, and "
                "the engine would normalise again: use make_tendon_pre_post_processors(config), "
                "or normalize='lerobot'")
        if not tokens and self.config.normalize == "lerobot":
            raise ValueError(
                "this batch was not normalised, and with normalize='lerobot' the engine does not: "
                "use the checkpoint's preprocessor and postprocessor, as "
                "make_tendon_pre_post_processors(config) gives them, or normalize='tendon'")
        count = batch[OBS_STATE].shape[0]
        task = batch.get("task")
        prompts = [task] * count if task is None or isinstance(task, str) else list(task)
        fields = {key: _bytes_of(value) if "image" in key else value.detach().cpu()
                  for key, value in batch.items()
                  if isinstance(value, Tensor) and key.startswith("observation.")
                  and "language" not in key}
        return [{**{key: value[row] for key, value in fields.items()},
                 "prompt": prompts[row] or self.config.default_prompt} for row in range(count)]

    def forward(self, batch: dict[str, Any]):
        raise NotImplementedError("a tendon policy runs checkpoints; train them as pi0 or pi05")

    def get_optim_params(self) -> dict:
        raise NotImplementedError("a tendon policy runs checkpoints; train them as pi0 or pi05")

    @classmethod
    def _load_as_safetensor(cls, model, model_file, map_location, strict):
        return model  # a saved configuration names its checkpoint; no weights lie beside it

    def _save_pretrained(self, save_directory, state_dict=None) -> None:
        self.config._save_pretrained(save_directory)


def _bytes_of(pictures: Tensor) -> Tensor:
    """uint8 of the same shape; lerobot's pictures are bytes divided by 255."""
    pictures = pictures.detach().cpu()
    if pictures.dtype == torch.uint8:
        return pictures.contiguous()
    return (255 * pictures).round().clamp(0, 255).to(torch.uint8).contiguous()


def _check_that_lerobot_can_normalise(checkpoint: str) -> None:
    about = tendon_pi0.inspect(checkpoint)
    if about["config"]["policy"] != "pi0":
        raise ValueError("π0.5 writes the state into the prompt before lerobot's processors "
                         "normalise actions: use normalize='tendon'")
    if any(about.get("relative_action_dims") or []):
        raise ValueError("this checkpoint's actions are relative to the state, which the engine "
                         "knows only with its own statistics: use normalize='tendon'")
