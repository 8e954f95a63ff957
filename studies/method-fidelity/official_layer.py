"""The layer that the authors' code is run on, and what it is run in."""

import contextlib
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import Tensor, nn

ABSENT = ("awq_inference_engine", "fast_hadamard_transform", "loguru", "lmeval")
OUTPUTS, INPUTS, TOKENS = 16, 64, 128
ROLL = 7
Tensors = dict[str, Tensor]


class Site:
    """One linear and its input, all values of float16: correlated, off centre, a few large.

    Args:
        number: How many times the weight is rolled by ``ROLL`` columns against its input; 0 is the
            layer that is stored, the others are more layers to average losses over.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw)

        spikes = 1 + 7 * (torch.rand((OUTPUTS, INPUTS), generator=draw) < 0.01)
        loud = 1 + 3 * (torch.rand(INPUTS, generator=draw) < 0.08)
        inputs = normal(TOKENS, 16) @ normal(16, INPUTS) / 4 + 0.3 * normal(TOKENS, INPUTS)
        weight = (0.1 * spikes * normal(OUTPUTS, INPUTS)).half().float()
        self.weight = weight.roll(number * ROLL, 1)
        self.inputs = (loud * (inputs + 0.5 * normal(INPUTS))).half().float()
        gradients = normal(TOKENS, OUTPUTS).square()
        self.sensitivity = (gradients.T @ self.inputs.square() / TOKENS).half().float()

    def linear(self) -> nn.Linear:
        """Return the linear, anew."""
        found = nn.Linear(INPUTS, OUTPUTS, bias=False)
        found.weight.data = self.weight.clone()
        return found

    def fed(self, engine: Any, *outputs: None) -> Any:
        """Return a solver of theirs that has seen the input."""
        engine.add_batch(self.inputs, *outputs)
        return engine

    def losses(self, found: Tensors, *names: str) -> Tensors:
        """Return ``<name>_loss``, ``E‖Δy‖²``, of weights or masks."""
        kept = {name: found[name] for name in names}
        dense = {name: t * self.weight if t.dtype == torch.bool else t for name, t in kept.items()}
        return {
            f"{name}_loss": ((tensor - self.weight) @ self.inputs.T).square().sum(0).mean()
            for name, tensor in dense.items()
        }

    def tensors(self) -> Tensors:
        """Return what a test needs of it."""
        named = {"weight": self.weight, "inputs": self.inputs, "sensitivity": self.sensitivity}
        return {name: tensor.half() for name, tensor in named.items()}


class Block(nn.Module):
    """A decoder layer of one linear that passes its input on."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.q_proj = linear

    def forward(self, hidden: Tensor, **others: object) -> tuple[Tensor]:
        """Run the linear, for whoever listens."""
        self.self_attn.q_proj(hidden)
        return (hidden,)


class Model(nn.Module):
    """What the pruning scripts take for a language model: blocks, fed with one window."""

    def __init__(self, site: Site, weights: list[Tensor]) -> None:
        super().__init__()
        linears = [site.linear() for _ in weights]
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data = weight.clone()
        self.model = nn.Module()
        self.model.layers = nn.ModuleList(Block(linear) for linear in linears)
        self.config = Namespace(use_cache=False, hidden_size=INPUTS)
        self.hf_device_map: dict[str, str] = {}
        self.seqlen = TOKENS

    def forward(self, window: Tensor) -> Tensor:
        """Run all blocks."""
        for layer in self.model.layers:
            (window,) = layer(window, attention_mask=None, position_ids=None)
        return window

    def weights(self) -> list[Tensor]:
        """Return what is left of the linears."""
        return [layer.self_attn.q_proj.weight.data.clone() for layer in self.model.layers]


def pruned(site: Site, prune: Callable[..., None], weights: list[Tensor], **asked: Any) -> Model:
    """Return a model after one of the pruning functions of Wanda, DSnoT or OWL."""
    model = Model(site, weights)
    pattern = asked.pop("pattern", (0, 0))
    arguments = Namespace(nsamples=1, seed=0, use_variant=False, model="toy", **asked)
    sys.modules[prune.__module__].get_loaders = lambda *_, **__: (  # type: ignore[attr-defined]
        [(site.inputs[None],)],
        None,
    )
    removed, length = pattern
    prune(arguments, model, None, torch.device("cpu"), prune_n=removed, prune_m=length)
    return model


def primes(number: int) -> Iterator[int]:
    """Yield the prime factors of a number, ascending."""
    factor = 2
    while number > 1:
        while number % factor:
            factor += 1
        yield factor
        number //= factor


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Import from a checkout, and forget what came from it; nothing asks for an accelerator."""
    stand_ins: dict[str, Any] = {name: MagicMock(__spec__=None) for name in ABSENT}
    stand_ins["codetiming"] = types.SimpleNamespace(Timer=lambda **_: lambda timed: timed)
    stand_ins["primefac"] = types.SimpleNamespace(primefac=primes)
    before = set(sys.modules)
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign,assignment]
    nn.Module.cuda = lambda module, *_, **__: module  # type: ignore[method-assign,assignment]
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    if not hasattr(np, "cast"):
        np.cast = {"byte": lambda values: values.astype("int8")}  # type: ignore[attr-defined]
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if name in stand_ins or not file or str(folder) in file:
                del sys.modules[name]
