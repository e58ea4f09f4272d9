"""What stands before and behind a tendon policy in lerobot."""
from __future__ import annotations

from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import AddBatchDimensionProcessorStep, PolicyProcessorPipeline
from lerobot.processor.converters import (policy_action_to_transition,
                                          transition_to_policy_action)
from lerobot.processor.rename_processor import RenameObservationsProcessorStep
from lerobot.utils.constants import (POLICY_POSTPROCESSOR_DEFAULT_NAME,
                                     POLICY_PREPROCESSOR_DEFAULT_NAME)

from .configuration_tendon import TendonConfig


def make_tendon_pre_post_processors(config: TendonConfig, dataset_stats=None):
    """With normalize="tendon" both pass values on: the engine normalises by the checkpoint's own
    statistics, and `dataset_stats` are not looked at. With "lerobot" they are the checkpoint's."""
    if config.normalize == "lerobot":
        renamed = {"rename_observations_processor": {"rename_map": config.rename_map}}
        return make_pre_post_processors(config, pretrained_path=config.checkpoint,
                                        preprocessor_overrides=renamed if config.rename_map else {})
    before = PolicyProcessorPipeline(
        steps=[RenameObservationsProcessorStep(rename_map=config.rename_map),
               AddBatchDimensionProcessorStep()],
        name=POLICY_PREPROCESSOR_DEFAULT_NAME)
    after = PolicyProcessorPipeline(
        steps=[], name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition, to_output=transition_to_policy_action)
    return before, after
