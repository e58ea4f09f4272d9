"""tendon inside Python: π0 and π0.5 robot policies without PyTorch.

    import tendon_pi0
    policy = tendon_pi0.Policy("CHECKPOINT", precision="bf16", threads=2)
    chunk = policy.infer(observation)["actions"]   # float64 [horizon, action_dim], robot's units

docs/python.md says what an observation is. Every error is a tendon_pi0.errors.Error.
"""
from ._engine import version as _version
from ._model import certify, convert, demo_observation, doctor, inspect, validate
from ._policy import Policy, RemotePolicy, connect
from .errors import (BackendError, CheckpointError, Error, InternalError, MemoryPlanError,
                     NetworkError, RequestError, UsageError, VerdictError)

__version__ = _version()
__all__ = ["BackendError", "CheckpointError", "Error", "InternalError", "MemoryPlanError",
           "NetworkError", "Policy", "RemotePolicy", "RequestError", "UsageError", "VerdictError",
           "certify", "connect", "convert", "demo_observation", "doctor", "inspect", "validate"]
