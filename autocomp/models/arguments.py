"""What transformers calls the arguments of a forward pass, which differs between its releases."""

from inspect import signature

from torch import nn

CACHE_NAMES = ("cache", "past_key_values")
"""The argument that takes the keys and values of earlier tokens, from 5.24 on and before."""


def cache_argument(module: nn.Module) -> str:
    """Return the name under which a module's ``forward`` takes its cache.

    Args:
        module: A decoder or its base model.
    """
    parameters = signature(module.forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[-1])
