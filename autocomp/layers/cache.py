"""The key/value cache of ``generate`` for attentions whose keys and values are compressed.

As a method says it would be in packed storage: new tokens attend to themselves and each other as
they were made, and to earlier ones as they are stored; then what is due is stored. Stored tokens
are kept decoded, so this shows the quality of a compressed cache, not its size.

The same, for all tokens of a text at once, is :mod:`autocomp.models.attention`.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from autocomp.core.errors import UnsupportedError
from autocomp.core.plan import Plan
from autocomp.core.registry import METHODS
from autocomp.core.sketch import Sketch
from autocomp.cost.bytes import is_bypassed
from autocomp.models.arguments import CACHE_NAMES, cache_argument
from autocomp.models.attention import cache_spec, compressing, set_cache_spec


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


class CompressedLayer(DynamicLayer):
    """The keys and values of one attention, (batch, kv heads, tokens, width).

    Args:
        spec: How they are stored.
        options: Of the base class.
    """

    keys: Tensor
    values: Tensor
    is_croppable = False

    def __init__(self, spec: Any, **options: Any) -> None:
        super().__init__(**options)
        self.spec = spec
        self.method = METHODS[spec.method]()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty."""
        super().lazy_initialization(key_states, value_states)
        self.stored = (0, 0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append tokens, return what they attend to, then store what is due."""
        attended = super().update(key_states, value_states, *args, **kwargs)
        due = self.method.stored(self.spec, self.get_seq_length())
        self.keys = self._store(self.keys, self.method.keys, self.stored[0], due[0])
        self.values = self._store(self.values, self.method.values, self.stored[1], due[1])
        self.stored = due
        return attended

    def _store(
        self, held: Tensor, rounded: Callable[[Any, Tensor], Tensor], start: int, stop: int
    ) -> Tensor:
        """Return the tokens that are held with those from ``start`` to ``stop`` stored."""
        if start == stop:
            return held
        before, due, after = held.tensor_split((start, stop), dim=-2)
        return torch.cat([before, rounded(self.spec, due), after], dim=-2)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what was stored in blocks cannot be taken back token by token."""
        if tokens_to_remove:
            raise _no_way_back(self.spec)

    def activate_past_recording(self) -> None:
        """Refuse, as :meth:`crop` does."""
        raise _no_way_back(self.spec)


class CompressedSlidingLayer(CompressedLayer, DynamicSlidingWindowLayer):
    """The same behind a sliding window.

    Tokens that the window has left behind are kept, as a block is stored when it is complete.
    """

    def __init__(self, spec: Any, sliding_window: int) -> None:
        super().__init__(spec, sliding_window=sliding_window)
        self.record_past = True


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


def _provide_cache(
    module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Put the compressed layers into the cache of a forward pass, made here if there is none."""
    specs = {attention.layer_idx: cache_spec(attention) for attention in compressing(module)}
    parameters = signature(module.forward).parameters
    given = dict(zip(parameters, args, strict=False)) | kwargs
    named = [given.pop(name, None) for name in CACHE_NAMES]
    cache = next((value for value in named if value is not None), None)
    use = given.get("use_cache")
    if cache is None and (module.config.use_cache if use is None else use):
        cache = DynamicCache(config=module.config)
    if not specs or cache is None:
        return None
    _compress_layers(cache, specs)
    return (), given | {cache_argument(module): cache}


def _compress_layers(cache: Any, specs: Mapping[Any, Any]) -> None:
    """Replace the empty layers of a cache, in place.

    Args:
        cache: Of transformers.
        specs: By index of the layer.
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
        cache.layers[index] = _compressed_layer(layer, spec)


def _compressed_layer(layer: CacheLayerMixin, spec: Any) -> CompressedLayer:
    """Return the compressed counterpart of an empty layer."""
    if type(layer) is DynamicLayer:
        return CompressedLayer(spec)
    if type(layer) is DynamicSlidingWindowLayer:
        return CompressedSlidingLayer(spec, sliding_window=layer.sliding_window)
    raise UnsupportedError(f"{spec.token()} cannot store the layers of {type(layer).__name__}.")


def _no_way_back(spec: Any) -> UnsupportedError:
    """Return the error of decoding that takes tokens back."""
    return UnsupportedError(
        f"assisted decoding takes tokens back from the cache, which {spec.token()} cannot. "
        "Generate without an assistant."
    )
