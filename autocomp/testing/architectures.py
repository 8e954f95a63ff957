"""The contract that every architecture method fulfils, as functions to call from any test runner.

``names`` lists the methods; the ``check_…`` functions raise ``AssertionError`` on a breach. They
look at what a method returns on a toy model; that the surgeon can cut it is checked on real ones.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from autocomp.core.errors import AutocompError, NumericalError, PlanError
from autocomp.core.method import ArchitectureMethod, Edit
from autocomp.core.registry import METHODS
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Needs, Stats
from autocomp.testing.methods import site
from autocomp.testing.spaces import toy_sketch

OPTIONS = ("-p75", "-p50", "-p87.5")
IDENTITY = "-p100"


class Toy:
    """A sketch with weights and statistics from a seed.

    Args:
        seed: Seed of all numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        self.sketch: Sketch = toy_sketch()
        self.weights: dict[str, Tensor] = {}
        self.stats: dict[str, Stats] = {}
        for place, linear in enumerate(self.sketch.weights()):
            weight, stats = site(100 * seed + place, linear.shape)
            self.weights[linear.name] = weight
            if linear.role == "down_proj":
                assert stats.norms is not None
                generator = Generator().manual_seed(seed + place)
                mean = torch.randn(linear.shape[1], generator=generator) * 0.5 * stats.norms
                self.stats[linear.name] = replace(stats, mean=mean, absmean=mean.abs())

    @property
    def widths(self) -> dict[str, int]:
        """Inner channels of every MLP by name."""
        return {self.sketch.owner[name]: self.sketch[name].shape[1] for name in self.stats}

    def edit(self, token: str) -> Edit:
        """Return what the method of a token does to it."""
        method = METHODS[token.partition("-")[0]]
        found: Edit = method().edit(
            self.sketch, method.spec.parse(token), self.weights.__getitem__, self.stats
        )
        return found


def names() -> list[str]:
    """Return the names of the registered architecture methods."""
    return [name for name, method in METHODS.items() if method.scope == "architecture"]


def check_described(name: str) -> None:
    """The method says what it is, what it needs and where it comes from."""
    method = METHODS[name]
    assert isinstance(method(), ArchitectureMethod)
    assert method.spec.method == name
    assert method.spec.slot == "architecture"
    assert isinstance(method.version, int)
    assert method.version >= 1
    assert method.summary
    assert "\n" not in method.summary
    assert re.match(r"https://\S+$", method.reference)
    assert "Reference:" in method.__doc__
    assert method.reference in method.__doc__
    assert all(isinstance(need, Needs) for need in method.needs)
    assert "(out, in)" in method.edit.__doc__


def check_tokens(name: str) -> None:
    """Tokens parse back to equal, hashable specs, and are no choice for a single site."""
    method = METHODS[name]
    written = [name + option for option in (*OPTIONS, IDENTITY)]
    specs = [method.spec.parse(token) for token in written]
    assert [spec.token() for spec in specs] == written
    assert len(set(specs)) == len(written)
    for token in (f"{name}-nonsense", f"{name}-p0", f"{name}-p101"):
        _refused(PlanError, partial(method.spec.parse, token))
    _refused(PlanError, partial(LayerSpec.parse, written[0]))


def check_edit(name: str) -> None:
    """Kept channels are sorted, distinct, of the right number; biases belong to cut MLPs."""
    for option in OPTIONS:
        toy = Toy()
        edit = toy.edit(name + option)
        widths = dict(toy.widths)
        for mlp, kept in edit.kept.items():
            assert kept.dtype == torch.int64
            assert 0 < len(kept) < widths[mlp]
            assert bool((kept[1:] > kept[:-1]).all())
            assert int(kept[0]) >= 0
            assert int(kept[-1]) < widths[mlp]
            widths[mlp] = len(kept)
        share = sum(widths.values()) / sum(toy.widths.values())
        assert abs(share - float(option[2:]) / 100) <= 1 / 24, "a unit of a layer at most"
        for linear, bias in edit.bias.items():
            assert toy.sketch.owner[linear] in edit.kept
            assert bias.dtype == torch.float32
            assert bias.shape == (toy.sketch[linear].shape[0],)
            assert bool(torch.isfinite(bias).all())


def check_identity(name: str) -> None:
    """Keeping everything changes nothing."""
    edit = Toy().edit(name + IDENTITY)
    assert not edit.kept
    assert not edit.bias


def check_pure(name: str) -> None:
    """Weights and statistics stay as they were, and a second call gives the same bits."""
    toy, untouched = Toy(), Toy()
    first, second = toy.edit(name + OPTIONS[0]), toy.edit(name + OPTIONS[0])
    for one, other in ((first.kept, second.kept), (first.bias, second.bias)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(torch.equal(toy.weights[key], untouched.weights[key]) for key in toy.weights)
    for key, stats in toy.stats.items():
        for field in ("hessian", "norms", "mean"):
            assert torch.equal(getattr(stats, field), getattr(untouched.stats[key], field))


def check_needs(name: str) -> None:
    """Statistics that are not asked for are not used; a missing one is named."""
    toy, lean, bare = Toy(), Toy(), Toy()
    needs = {need.value for need in METHODS[name].needs}
    lean.stats = {
        key: Stats(**{field: getattr(stats, field) for field in needs})
        for key, stats in lean.stats.items()
    }
    full, least = toy.edit(name + OPTIONS[0]), lean.edit(name + OPTIONS[0])
    assert all(torch.equal(full.kept[key], least.kept[key]) for key in full.kept)
    bare.stats = {key: Stats() for key in bare.stats}
    if needs:
        _refused(PlanError, lambda: bare.edit(name + OPTIONS[0]))


def check_damage(name: str) -> None:
    """A weight that is not finite is refused, and zero weights are not."""
    toy, zero = Toy(), Toy()
    linear = next(iter(toy.stats))
    toy.weights[linear][3, 5] = torch.nan
    _refused(NumericalError, lambda: toy.edit(name + OPTIONS[0]))
    zero.weights[linear][:] = 0.0
    assert zero.edit(name + OPTIONS[0]).kept


def _refused(kind: type[AutocompError], call: Callable[[], object]) -> None:
    """Assert that a call raises an error of that kind."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}")
