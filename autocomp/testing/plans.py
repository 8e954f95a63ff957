"""Random plans of small models and their compressed weights; no statistics needed."""

import numpy as np
import torch
from transformers import PreTrainedModel

from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.sketch import Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.cost.bytes import is_bypassed
from autocomp.formats.base import CompressedWeight
from autocomp.models.weights import get_weight

LINEAR_TOKENS = (
    "dense",
    "rtn-w2g16",
    "rtn-w3g32",
    "rtn-w4g64",
    "rtn-w5",
    "rtn-w6-sym",
    "rtn-w8g32-sym",
    "rtn-w4g16-mse",
    "magnitude-s50",
    "magnitude-s37.5+rtn-w4g16",
    "magnitude-2:4",
    "magnitude-2:4+rtn-w8",
    "svd-r8",
    "svd-p50",
    "svd-r16+rtn-w8",
)
TABLE_TOKENS = ("dense", "rtn-w4g16", "rtn-w8", "rtn-w3g32-sym")


def random_plan(sketch: Sketch, seed: int, *, bypass: float = 0.2) -> Plan:
    """Return a plan that takes every site's spec at random from those that need no statistics.

    Args:
        sketch: A model whose linears have inputs divisible by 64.
        seed: Seed of the choice.
        bypass: Probability that a sub-block is bypassed.
    """
    random = np.random.default_rng(seed)
    layers: dict[str, LayerSpec] = {}
    for site in sketch.sites:
        if site.kind == "subblock":
            token = "bypass" if random.random() < bypass else "dense"
        elif site.kind == "cache":
            token = "dense"
        else:
            tokens = LINEAR_TOKENS if site.kind == "linear" else TABLE_TOKENS
            token = tokens[random.integers(len(tokens))]
        layers[site.name] = LayerSpec.parse(token)
    gone = [name for name in layers if is_bypassed(sketch, Plan(layers), name)]
    return Plan(layers | dict.fromkeys(gone, DENSE))


def compress_plan(
    model: PreTrainedModel, sketch: Sketch, plan: Plan
) -> dict[str, CompressedWeight]:
    """Return the compressed weight of every site that no bypassed sub-block holds.

    Args:
        model: The dense model of the sketch.
        sketch: Its sketch.
        plan: A plan whose methods need no statistics.
    """
    compress = load_object("autocomp.methods.compose:compress")
    return {
        site.name: compress(
            get_weight(model, site.name).to(torch.float32), plan[site.name], None, sketch.dtype
        )
        for site in sketch.weights()
        if not is_bypassed(sketch, plan, site.name)
    }
