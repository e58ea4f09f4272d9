"""What tendon raises: one class per kind of fault, the exit codes of the command as `fault`."""


class Error(RuntimeError):
    """The base of all. Its text says what failed with the values, where, and what to do next."""
    fault = 70


class VerdictError(Error):
    """A comparison or check gave a negative verdict."""
    fault = 1


class UsageError(Error, ValueError):
    """A wrong option or configuration key; a policy used after a fork."""
    fault = 2


class CheckpointError(Error):
    """Weights, configuration, statistics or tokenizer of a model."""
    fault = 3


class RequestError(Error, ValueError):
    """Images, prompt, state, noise or previous chunk of one call. The policy stays usable."""
    fault = 4


class BackendError(Error):
    """A backend or device is missing, or an operation that it lacks."""
    fault = 5


class MemoryPlanError(Error):
    """The model needs more memory than there is or than max_memory allows."""
    fault = 6


class NetworkError(Error):
    """Nobody answers at a URL, or the connection is lost."""
    fault = 7


class InternalError(Error):
    """A fault of tendon's own, or actions that are not finite."""
    fault = 70


_BY_FAULT = {kind.fault: kind for kind in Error.__subclasses__()}


def of_fault(fault: int) -> type[Error]:
    """The class of an exit code."""
    return _BY_FAULT.get(fault, Error)
