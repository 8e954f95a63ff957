"""The key/value cache of ``generate`` for attentions whose keys and values are compressed.

As a method says: new tokens attend to themselves and each other as they were made, and to earlier
ones as they are stored; then what is due is stored. Where a kernel attends to codes they are kept
packed, elsewhere decoded (:mod:`autocomp.layers.cache_layers`).

The same, for all tokens of a text at once, is :mod:`autocomp.models.attention`.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from autocomp.core.errors import UnsupportedError
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.cost.bytes import is_bypassed
from autocomp.layers.cache_layers import (
    CompressedLayer,
    CompressedSlidingLayer,
    PackedLayer,
    packs,
)
from autocomp.models.arguments import CACHE_NAMES, cache_argument
from autocomp.models.attention import PACKED, cache_spec, compressing, set_cache_spec


def set_cache_specs(model: nn.Module, sketch: Sketch, plan: Plan) -> int:
    """Say how every attention that a plan keeps stores keys and values.

    Args:
        model: A decoder that bypasses what the plan bypasses.
        sketch: Its sketch.
        plan: The plan; cache sites it does not name are in full precision.

    Returns:
        How many attentions changed.
    """
    changed = 0
    for site in sketch.caches():
        if not is_bypassed(sketch, plan, site.name):
            attention, spec = model.get_submodule(sketch.owner[site.name]), plan[site.name].cache
            changed += cache_spec(attention) != spec
            set_cache_spec(attention, spec)
    return changed


def install_generation_cache(model: PreTrainedModel) -> None:
    """Give a model that is told to use a cache the one that its cache specs describe.

    ``generate`` and plain passes with ``use_cache=True`` then need no argument; an empty
    ``DynamicCache`` that a caller passes is filled accordingly. Specs that are set later count
    from the next sequence on.

    Args:
        model: A decoder.
    """
    for module in (model, model.base_model):
        module.register_forward_pre_hook(_provide_cache, with_kwargs=True)
        module.register_forward_hook(_take_cache_away, always_call=True)


def _provide_cache(
    module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Put the compressed layers into the cache of a forward pass, made here if there is none."""
    attentions = {attention.layer_idx: attention for attention in compressing(module)}
    specs = {index: cache_spec(attention) for index, attention in attentions.items()}
    parameters = signature(module.forward).parameters
    given = dict(zip(parameters, args, strict=False)) | kwargs
    named = [given.pop(name, None) for name in CACHE_NAMES]
    cache = next((value for value in named if value is not None), None)
    use = given.get("use_cache")
    if cache is None and (module.config.use_cache if use is None else use):
        cache = DynamicCache(config=module.config)
    if not specs or cache is None:
        return None
    _compress_layers(cache, specs, module)
    for index, attention in attentions.items():
        attention.cache_layer = cache.layers[index]
    packed = any(isinstance(cache.layers[index], PackedLayer) for index in attentions)
    if packed and module.config._attn_implementation != PACKED:
        module.set_attn_implementation(PACKED)
    return (), given | {cache_argument(module): cache}


def _take_cache_away(module: PreTrainedModel, *_: Any) -> None:
    """Leave the cache to whoever called."""
    for attention in compressing(module):
        attention.cache_layer = None  # type: ignore[assignment]


def _compress_layers(cache: Any, specs: Mapping[Any, Any], model: PreTrainedModel) -> None:
    """Replace the empty layers of a cache, in place.

    Args:
        cache: Of transformers.
        specs: By index of the layer.
        model: What uses it.
    """
    if not isinstance(cache, DynamicCache):
        raise UnsupportedError(
            f"this model stores its keys and values in few bits, which {type(cache).__name__} "
            "cannot. Leave past_key_values and cache_implementation out."
        )
    while cache.layer_class_to_replicate is not None and len(cache.layers) <= max(specs):
        cache.layers.append(cache.layer_class_to_replicate())
    for index, spec in specs.items():
        layer = cache.layers[index]
        if isinstance(layer, CompressedLayer):
            continue
        if layer.get_seq_length():
            raise UnsupportedError(
                f"layer {index} of the cache holds {layer.get_seq_length()} tokens in full "
                f"precision; {spec.token()} has to see a sequence from its start."
            )
        cache.layers[index] = _compressed_layer(layer, spec, model)


def _compressed_layer(
    layer: CacheLayerMixin, spec: Any, model: PreTrainedModel
) -> CompressedLayer:
    """Return the compressed counterpart of an empty layer."""
    if type(layer) is DynamicLayer:
        return CompressedLayer(spec) if packs(model, spec) else PackedLayer(spec)
    if type(layer) is DynamicSlidingWindowLayer:
        return CompressedSlidingLayer(spec, sliding_window=layer.sliding_window)
    raise UnsupportedError(f"{spec.token()} cannot store the layers of {type(layer).__name__}.")
