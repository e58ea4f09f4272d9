"""The options of lerobot's policy type "tendon"."""
from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import NormalizationMode
from lerobot.policies.rtc.configuration_rtc import RTCConfig


@PreTrainedConfig.register_subclass("tendon")
@dataclass
class TendonConfig(PreTrainedConfig):
    """`--policy.type=tendon --policy.checkpoint=FOLDER`. The checkpoint is no `--policy.path`:
    lerobot reads that option itself and takes the type from the folder."""

    checkpoint: str = ""  # what tendon_pi0.Policy takes
    url: str = ""  # of a policy server instead
    precision: str | None = None  # "bf16" (default), "f32" or "int8"
    threads: int = 0  # 0: one per core
    # Who turns states and actions into the model's numbers and back. "tendon": the engine, by the
    # checkpoint's own statistics; the processors of this package pass values on. "lerobot": the
    # checkpoint's policy_preprocessor.json and policy_postprocessor.json in lerobot; π0 only.
    normalize: str = "tendon"
    n_action_steps: int | None = None  # executed of each chunk; None: all
    default_prompt: str | None = None  # for environments that name no task
    # From the environment's or dataset's names of observations to the checkpoint's.
    rename_map: dict[str, str] = field(default_factory=dict)
    rtc_config: RTCConfig | None = None
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {kind: NormalizationMode.IDENTITY
                                 for kind in ("VISUAL", "STATE", "ACTION")})

    def __post_init__(self) -> None:
        self.device = "cpu"
        super().__post_init__()
        if bool(self.checkpoint) == bool(self.url):
            raise ValueError("a tendon policy needs either checkpoint (--policy.checkpoint=FOLDER) "
                             "or url (--policy.url=ws://HOST:PORT)")
        if self.normalize not in ("tendon", "lerobot"):
            raise ValueError(f"normalize is '{self.normalize}', expected 'tendon' or 'lerobot'")
        if self.url and self.normalize == "lerobot":
            raise ValueError("a policy server normalises by itself: normalize='lerobot' is for a "
                             "checkpoint")
        rtc = self.rtc_config
        if rtc and (rtc.max_guidance_weight, rtc.prefix_attention_schedule.value) != (10, "LINEAR"):
            raise ValueError("a tendon policy guides with lerobot's default max_guidance_weight of "
                             "10 and a LINEAR prefix_attention_schedule only")

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> None:
        return None

    @property
    def reward_delta_indices(self) -> None:
        return None

    def validate_features(self) -> None:
        """Cameras, state and actions are checked against the checkpoint by the policy."""

    def get_optimizer_preset(self):
        raise NotImplementedError("a tendon policy runs checkpoints; train them as pi0 or pi05")

    def get_scheduler_preset(self):
        raise NotImplementedError("a tendon policy runs checkpoints; train them as pi0 or pi05")
