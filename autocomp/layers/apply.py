"""Trying plans on a live dense model: only what differs from the last plan is touched."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from autocomp.core.plan import Plan
from autocomp.core.sketch import Site, Sketch
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.formats.base import Operands
from autocomp.layers.cache import set_cache_specs
from autocomp.models.weights import get_weight, set_weight

Fetch = Callable[[str, LayerSpec], Operands]


class BypassedAttention(nn.Module):
    """An attention that adds nothing to the residual stream and writes no cache."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Return zeros shaped like the input, (batch, length, hidden), and no weights."""
        return torch.zeros_like(hidden_states), None


class BypassedMlp(nn.Module):
    """An MLP that adds nothing to the residual stream, or a linear of one without a module."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return zeros shaped like the input, (…, hidden)."""
        return torch.zeros_like(hidden_states)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Put ``module`` in the place called ``name`` and return what was there."""
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    old = owner.get_submodule(child)
    setattr(owner, child, module)
    return old


def bypass(model: nn.Module, site: Site) -> dict[str, nn.Module]:
    """Put stand-ins in the place of a sub-block and return what was there, by name.

    The stand-in of a module takes its place. An MLP whose linears lie in the block itself, as in
    OPT, has none: every one of its linears is replaced, and zeros run through all of them.

    Args:
        model: A decoder.
        site: A sub-block that is not bypassed.
    """
    holds_cache = site.members[-1] == f"{site.name}.cache"
    parent, _, child = site.name.rpartition(".")
    own = hasattr(model.get_submodule(parent), child)
    return {
        name: replace_module(model, name, BypassedAttention() if holds_cache else BypassedMlp())
        for name in ((site.name,) if own else site.members)
    }


def attention_names(sketch: Sketch) -> tuple[str, ...]:
    """Return the names of all attention modules, in block order."""
    return tuple(sketch.owner[site.name] for site in sketch.caches())


def number_caches(model: PreTrainedModel, names: Sequence[str]) -> bool:
    """Give the attentions that are left the first cache slots of their layer type.

    ``transformers`` reads the number of cached tokens from slot 0, so a bypassed first attention
    would leave the cache at length zero for ever.

    Args:
        model: A decoder, some of whose attentions may be bypassed.
        names: All attention modules in block order.

    Returns:
        Whether slot 0 is in use. If it is not (every attention of the first layer's type is
        bypassed), generation has to run without a cache.
    """
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"] * len(names)
    free = {kind: iter([i for i, other in enumerate(kinds) if other == kind]) for kind in kinds}
    used = set()
    for name, kind in zip(names, kinds, strict=True):
        module = model.get_submodule(name)
        if not isinstance(module, BypassedAttention):
            module.layer_idx = next(free[kind])  # type: ignore[assignment]
            used.add(module.layer_idx)
    return 0 in used


class Candidate:
    """A dense model that takes the form of one plan after another.

    What it computes equals the written file of the plan: sites that stay dense, and the parameters
    that no plan touches, are rounded to the storage dtype too. While a sub-block is bypassed the
    names of its members do not resolve in the model.

    Args:
        model: A dense model, changed in place, of any float dtype and device.
        sketch: Its sketch.
    """

    def __init__(self, model: PreTrainedModel, sketch: Sketch) -> None:
        self.model = model
        self.sketch = sketch
        self._attentions = attention_names(sketch)
        self._specs: dict[str, LayerSpec] = {}
        self._weights: dict[str, Tensor] = {}
        self._rest: dict[str, Tensor] = {}
        self._modules: dict[str, dict[str, nn.Module]] = {}
        self._prepared: dict[str, RemovableHandle] = {}
        self._use_cache = (model.config.use_cache, _generation_cache(model))
        self.plan: Plan | None = None

    @torch.no_grad()
    def apply(self, plan: Plan, fetch: Fetch) -> int:
        """Make the model compute what ``plan`` says.

        Args:
            plan: The plan; sites it does not name are dense.
            fetch: Returns what a linear computes with, the weight (out, in) of any float dtype,
                for a site's name and spec; called only for sites whose spec is not dense and
                differs from the one held.

        Returns:
            How many sites changed.
        """
        self._round_rest()
        self.plan = plan
        changed = self._bypass({s.name for s in self.sketch.subblocks() if plan[s.name] != DENSE})
        for site in self.sketch.weights():
            spec = plan[site.name]
            hidden = self.sketch.owner.get(site.name) in self._modules
            if hidden or self._specs.get(site.name) == spec:
                continue
            self._keep(site.name)
            dense = spec == DENSE
            self._set(
                site.name, Operands(self._stored(site.name)) if dense else fetch(site.name, spec)
            )
            self._specs[site.name] = spec
            changed += 1
        return changed + set_cache_specs(self.model, self.sketch, plan)

    @torch.no_grad()
    def put(self, site: str, operands: Operands) -> None:
        """Make a linear compute with something that no spec names, such as a finished weight."""
        self._keep(site)
        self._set(site, operands)
        self._specs.pop(site, None)
        self.plan = None

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model back exactly as it was; the kept originals are released."""
        self._bypass(set())
        set_cache_specs(self.model, self.sketch, Plan({}))
        for name, weight in self._weights.items():
            self._set(name, Operands(weight))
        state = self.model.state_dict()
        for name, tensor in self._rest.items():
            state[name].copy_(tensor)
        for kept in (self._specs, self._weights, self._rest):
            kept.clear()
        self.plan = None

    def _set(self, site: str, operands: Operands) -> None:
        """Set a weight, and what is done to the input of its module first."""
        set_weight(self.model, site, operands.weight)
        if site in self._prepared:
            self._prepared.pop(site).remove()
        if operands.prepare is not None:
            module = self.model.get_submodule(site)
            self._prepared[site] = module.register_forward_pre_hook(_input_hook(operands.prepare))

    def _keep(self, site: str) -> None:
        """Keep the original weight of a site before it is overwritten for the first time."""
        if site not in self._weights:
            self._weights[site] = get_weight(self.model, site).to("cpu", copy=True)

    def _stored(self, site: str) -> Tensor:
        """Return the original weight of a site as a file holds it."""
        return self._weights[site].to(getattr(torch, self.sketch.dtype))

    def _round_rest(self) -> None:
        """Round the parameters that no plan touches to what a file holds, once."""
        if self._rest:
            return
        state = self.model.state_dict()
        for name, info in self.sketch.rest.items():
            self._rest[name] = state[name].to("cpu", copy=True)
            state[name].copy_(state[name].to(getattr(torch, info.dtype)))

    def _bypass(self, names: set[str]) -> int:
        """Bypass exactly the sub-blocks called ``names``; return how many changed."""
        changed = names ^ self._modules.keys()
        for name in changed:
            if name in names:
                self._modules[name] = bypass(self.model, self.sketch[name])
            else:
                for place, module in self._modules.pop(name).items():
                    replace_module(self.model, place, module)
        if changed:
            usable = number_caches(self.model, self._attentions)
            set_cache_use(self.model, *(usable and before for before in self._use_cache))
        return len(changed)


def _input_hook(
    prepare: Callable[[Tensor], Tensor],
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Return a forward pre-hook that changes the first argument."""
    return lambda _, args: (prepare(args[0]), *args[1:])


def set_cache_use(model: PreTrainedModel, forward: bool, generate: bool) -> None:
    """Set whether plain forward passes and ``generate`` use a cache when they are not told."""
    model.config.use_cache = forward
    if model.generation_config is not None:
        model.generation_config.use_cache = generate


def _generation_cache(model: PreTrainedModel) -> bool:
    """Return whether ``generate`` uses a cache by default."""
    config = model.generation_config
    return config is None or config.use_cache is not False
