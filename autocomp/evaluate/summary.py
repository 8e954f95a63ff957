"""From windows to figures: means, standard errors over windows, and what the record holds.

Standard errors are those of a mean over windows, which are a sample of a text: they say nothing of
other texts, seeds or calibration. Where a model is compared with its base, both read the same
windows, so the error is that of the paired differences.
"""

import math
from collections.abc import Sequence

import numpy as np

from autocomp.data import Windows
from autocomp.evaluate.divergence import WindowScores
from autocomp.evaluate.record import DataRead, Metric


def mean_metric(values: Sequence[float]) -> Metric:
    """Return the mean over windows or examples with its standard error ``sd / √n``."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else None
    return Metric(float(array.mean()), None if error is None else float(error))


def perplexity_metric(nll_nats: Sequence[float]) -> Metric:
    """Return ``exp`` of the mean over windows of a window's cross entropy, nats a token.

    Its standard error is that of the mean times the perplexity.
    """
    nll = mean_metric(nll_nats)
    value = math.exp(nll.value)
    return Metric(value, _times(nll.standard_error, value))


def text_metrics(nll_nats: Sequence[float], text_bytes: int, read: DataRead) -> dict[str, Metric]:
    """Return ``nll_nats``, ``perplexity`` and ``bits_per_byte`` of a text.

    The perplexity is that of :func:`perplexity_metric`. Bits per byte are
    ``nll · tokens / (bytes · ln 2)``, comparable across tokenizers: the first token of a window,
    which nothing predicts, is taken to cost as much as the others.

    Args:
        nll_nats: Mean cross entropy of each window, nats a token.
        text_bytes: UTF-8 bytes of the windows.
        read: What was read.
    """
    nll = mean_metric(nll_nats)
    bits = read.tokens / math.log(2) / text_bytes
    return {
        "perplexity": perplexity_metric(nll_nats),
        "nll_nats": nll,
        "bits_per_byte": Metric(nll.value * bits, _times(nll.standard_error, bits)),
    }


def divergence_metrics(
    scores: WindowScores, base_nll: Sequence[float], text_bytes: int, read: DataRead
) -> dict[str, Metric]:
    """Return the figures of a model beside those of its base.

    ``kl_nats``, ``top1_agreement``, ``nll_difference`` (paired, nats a token) and
    ``base_perplexity``, beside those of :func:`text_metrics`.

    Args:
        scores: Of the model, a window each.
        base_nll: Cross entropy of the base, nats a token, on the same windows.
        text_bytes: UTF-8 bytes of the windows.
        read: What was read.
    """
    difference = [mine - its for mine, its in zip(scores.nll_nats, base_nll, strict=True)]
    return {
        "kl_nats": mean_metric(scores.kl_nats),
        "top1_agreement": mean_metric(scores.top1),
        **text_metrics(scores.nll_nats, text_bytes, read),
        "base_perplexity": text_metrics(base_nll, text_bytes, read)["perplexity"],
        "nll_difference": mean_metric(difference),
    }


def data_read(found: Windows, seed: int = 0) -> DataRead:
    """Return the record of some windows."""
    return DataRead(
        name=found.corpus,
        digest=found.digest,
        units=len(found.input_ids),
        tokens=found.tokens,
        window=found.length,
        split=found.split,
        seed=seed,
    )


def _times(error: float | None, factor: float) -> float | None:
    return None if error is None else error * factor
