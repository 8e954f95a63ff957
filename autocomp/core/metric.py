"""Losses that a search may minimise: names in files, and how people read them."""

from typing import Final

KL: Final = "kl_nats"
PERPLEXITY: Final = "perplexity"
TASK_ERROR: Final = "task_error"
LEAST_LOSS = 1e-5

_SHORT = {KL: "KL"}
_UNITS = {KL: "nats a token", PERPLEXITY: "a token", TASK_ERROR: "1 − accuracy"}
_PAIRED = {PERPLEXITY: "cross entropy"}


def short_name(metric: str) -> str:
    """Return the name of a metric in tables and messages."""
    return _SHORT.get(metric, metric)


def paired_name(metric: str) -> str:
    """Return the name of what is compared unit by unit: of a perplexity, its logarithm."""
    return _PAIRED.get(metric, short_name(metric))


def unit_of(metric: str) -> str:
    """Return what the values of a metric are in."""
    return _UNITS[metric]


def positive(loss: float) -> float:
    """Return a loss as a positive number, for logarithms and ratios.

    A KL whose floor was taken off may be 0 or below; no body in bf16 tells it from 1e-5 nats.
    """
    return max(loss, LEAST_LOSS)
