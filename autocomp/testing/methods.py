"""The contract of every method that compresses a site or changes its input.

``names`` lists the methods of some scopes; ``tokens`` gives layer specs that use a method, with
the slots it goes together with; ``site`` makes a weight with statistics from a seed; the
``check_…`` functions raise ``AssertionError`` on a breach. Suites of other scopes lie beside this
one; ``check_described`` holds for all.
"""

import dataclasses
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Generator, Tensor

from autocomp.core.errors import AutocompError, NumericalError, PlanError, UnsupportedError
from autocomp.core.method import Method, Scope
from autocomp.core.registry import METHODS, load_object
from autocomp.core.sketch import SiteKind
from autocomp.core.spec import LayerSpec, Spec
from autocomp.core.stats import Needs, Stats
from autocomp.formats.base import CompressedWeight
from autocomp.formats.io import file_nbytes, load, save
from autocomp.testing.options import BASES, OPTIONS, PARTNERS, SHAPE


def names(*scopes: Scope) -> list[str]:
    """Return the registered methods of some scopes."""
    return [name for name, method in METHODS.items() if method.scope in scopes]


def options(name: str, kind: str) -> list[str]:
    """Return layer specs that use a method; ``kind`` is a key of the table of options."""
    base = BASES.get(name) or BASES.get(METHODS[name].spec.slot, "{}")
    return [base.format(name + option) for option in _endings(name, kind)]


def tokens(name: str) -> list[str]:
    """Return layer specs that use a method on a weight of ``SHAPE``, with various partners."""
    partners = PARTNERS.get(name, PARTNERS.get(METHODS[name].spec.slot, ()))
    return options(name, "valid") + [
        partner.format(name + option) for option in _endings(name, "valid") for partner in partners
    ]


def _endings(name: str, kind: str) -> tuple[str, ...]:
    """Return what follows a method's name in its options."""
    spec = METHODS[name].spec
    known = [
        name,
        *(base for base in OPTIONS if isinstance(base, type) and issubclass(spec, base)),
    ]
    for key in known:
        if key in OPTIONS:
            return OPTIONS[key].get(kind, ())
    return ("",) if kind in ("valid", "column") else ()


def site(seed: int = 0, shape: tuple[int, int] = SHAPE) -> tuple[Tensor, Stats]:
    """Return a weight (out, in) fp32 and statistics of strongly correlated inputs.

    The sample holds all the inputs that the other statistics are of.
    """
    generator = Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    width = shape[1]
    rank = max(1, width // 4)
    mixing = torch.randn((rank, width), generator=generator)
    inputs = torch.randn((8 * width, rank), generator=generator) @ mixing
    inputs += 0.3 * torch.randn(inputs.shape, generator=generator)
    hessian = inputs.T @ inputs / len(inputs)
    gradients = torch.randn((len(inputs), shape[0]), generator=generator)
    return weight, Stats(
        tokens=len(inputs),
        hessian=hessian,
        norms=hessian.diagonal().sqrt(),
        mean=inputs.mean(dim=0),
        absmean=inputs.abs().mean(dim=0),
        absmax=inputs.abs().amax(dim=0),
        sample=inputs,
        sensitivity=gradients.square().T @ inputs.square() / len(inputs),
        digest=f"contract-{seed}",
    )


def compress(token: str, weight: Tensor, stats: Stats | None, dtype: str) -> CompressedWeight:
    """Compress as the rest of autocomp does."""
    found: CompressedWeight = _compose("compress")(weight, LayerSpec.parse(token), stats, dtype)
    return found


def output_error(weight: Tensor, compressed: Tensor, stats: Stats) -> float:
    """Return ``tr(D H Dᵀ)`` of the change D."""
    assert stats.hessian is not None
    change = (compressed - weight).double()
    return float((change @ stats.hessian.double() * change).sum())


def sample_error(weight: Tensor, compressed: CompressedWeight, stats: Stats) -> float:
    """Return ``E‖Δy‖²`` over the sample, the change of the input included."""
    assert stats.sample is not None
    operands, inputs = compressed.operands(), stats.sample
    prepared = inputs if operands.prepare is None else operands.prepare(inputs)
    change = prepared @ operands.weight.T - inputs @ weight.T
    return float(change.double().square().sum(dim=1).mean())


def digest(name: str) -> str:
    """Return a hash of everything that a method makes of one site."""
    found = hashlib.sha256()
    for token in tokens(name):
        weight, stats = site()
        for local, tensor in compress(token, weight, stats, "float16").tensors.items():
            found.update(f"{token}/{local}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
            found.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_described(name: str) -> None:
    """The method says what it is, what it needs and where it comes from; of any scope."""
    method = METHODS[name]
    assert isinstance(method(), Method)
    assert method.scope in get_args(Scope)
    assert method.spec.method == name
    assert method.spec.slot
    assert dataclasses.is_dataclass(method.spec)
    assert getattr(method.spec, "__dataclass_params__").frozen  # noqa: B009 (typed as absent)
    assert isinstance(method.version, int)
    assert method.version >= 1
    assert method.summary
    assert "\n" not in method.summary
    assert re.match(r"https://\S+$", method.reference)
    assert all(isinstance(need, Needs) for need in method.needs)
    assert "Reference:" in method.__doc__
    assert method.reference in method.__doc__


def check_applies(name: str) -> None:
    """The method says where it applies, in which formats, and with which shapes."""
    method = METHODS[name]
    assert method.kinds
    assert method.kinds <= set(get_args(SiteKind))
    if method.scope == "site":
        assert "(out, in)" in method.compress.__doc__
        specs = [method.spec.parse(name + ending) for ending in _endings(name, "valid")]
        assert {method().layout(s, SHAPE, "float16").name for s in specs} == set(method.formats)
    elif method.scope == "refinement":
        assert "(out, in)" in method.refine.__doc__
    else:
        assert re.search(r"\(in,\)|\(1,\)|nothing", method.fit.__doc__)


def check_tokens(name: str) -> None:
    """Tokens parse back to equal, hashable specs, and different specs have different tokens."""
    written = tokens(name) + options(name, "ladder") + options(name, "identity")
    specs = {token: LayerSpec.parse(token) for token in written}
    for token, spec in specs.items():
        assert spec.token() == token
        assert LayerSpec.parse(spec.token()) == spec
        assert all(isinstance(part, Spec) for part in spec.filled())
    assert len(set(specs.values())) == len(set(written))
    _refused(PlanError, LayerSpec.parse, f"{name}-nonsense")


def check_bytes(name: str, folder: Path) -> None:
    """Tensors are those predicted from shapes alone, and a file gives the same bits back."""
    for token in tokens(name):
        spec = LayerSpec.parse(token)
        for dtype in ("float16", "bfloat16"):
            weight, stats = site()
            compressed = compress(token, weight, stats, dtype)
            compressed.check()
            predicted = _compose("layout")(spec, SHAPE, dtype)
            assert compressed.layout == predicted, token
            assert compressed.nbytes == predicted.nbytes, token
            path = folder / "weight.safetensors"
            save(path, compressed.tensors, predicted.to_json())
            assert path.stat().st_size == file_nbytes(predicted.tensors(), predicted.to_json())
            restored = CompressedWeight(predicted, load(path)[0])
            assert torch.equal(restored.to_dense(), compressed.to_dense()), token


def check_pure(name: str) -> None:
    """Neither weight nor statistics change, and what is cached does not change the result."""
    for token in tokens(name):
        weight, stats = site()
        first = compress(token, weight, stats, "float16")
        again = compress(token, weight, stats, "float16")
        untouched, fresh = site()
        assert torch.equal(weight, untouched), token
        for field in (need.value for need in Needs if need is not Needs.FISHER):
            assert torch.equal(getattr(stats, field), getattr(fresh, field)), (token, field)
        other = compress(token, untouched, fresh, "float16")
        for local, tensor in first.tensors.items():
            assert torch.equal(tensor, again.tensors[local]), (token, local)
            assert torch.equal(tensor, other.tensors[local]), (token, local)


def check_other_process(chosen: list[str]) -> None:
    """A fresh process with the same number of threads makes the same bytes."""
    code = (
        "import sys, torch; from autocomp.testing.methods import digest; "
        "torch.set_num_threads(int(sys.argv[1])); print(*map(digest, sys.argv[2:]))"
    )
    command = [sys.executable, "-P", "-c", code, str(torch.get_num_threads()), *chosen]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(chosen, found, strict=True)) == {name: digest(name) for name in chosen}


def check_identity(name: str) -> None:
    """Specs that remove nothing give the weight back, up to the storage dtype."""
    weight, stats = site()
    for token in options(name, "identity"):
        dense = compress(token, weight, stats, "float16").to_dense()
        assert float((dense - weight).norm() / weight.norm()) < 2e-3, token


def check_preserves(name: str) -> None:
    """A change of the input is undone by the weight, in what is multiplied and when decoded."""
    for ending in _endings(name, "valid"):
        weight, stats = site()
        compressed = compress(f"{name}{ending}+magnitude-4:4", weight, stats, "float32")
        scale = float(weight.norm())
        assert float((compressed.to_dense() - weight).norm()) < 1e-6 * scale, name + ending
        assert stats.hessian is not None
        outputs = float((weight @ stats.hessian * weight).sum())
        assert sample_error(weight, compressed, stats) < 1e-10 * outputs, name + ending


def check_monotone(name: str, seeds: int = 5) -> None:
    """More bits, weights or ranks mean less output error, on average over seeds."""
    errors = []
    for token in options(name, "ladder"):
        total = 0.0
        for seed in range(seeds):
            weight, stats = site(seed)
            compressed = compress(token, weight, stats, "float16")
            total += sample_error(weight, compressed, stats)
        errors.append(total)
    assert errors == sorted(errors, reverse=True), (options(name, "ladder"), errors)


def check_edges(name: str) -> None:
    """Zero rows stay zero, zero weights and one column work; NaN and bad shapes are refused.

    A zero row is not kept apart where rows are mixed before they are rounded.
    """
    mixing = set(options(name, "mixing rows"))
    for token in tokens(name):
        weight, stats = site()
        weight[3] = 0
        dense = compress(token, weight, stats, "float16").to_dense()
        assert bool(torch.isfinite(dense).all()), token
        if not set(token.split("+")) & mixing:
            assert float(dense[3].abs().max()) < 1e-4, token
        zeros = compress(token, torch.zeros(SHAPE), stats, "float16").to_dense()
        assert float(zeros.abs().max()) < 1e-4, token
        for bad in (float("nan"), float("inf")):
            weight[5, 7] = bad
            _refused(NumericalError, compress, token, weight, stats, "float16")
    for token in options(name, "column"):
        weight, stats = site(shape=(8, 1))
        compressed = compress(token, weight, stats, "float16")
        compressed.check()
        assert compressed.to_dense().shape == (8, 1)
    for token in options(name, "refused"):
        spec = LayerSpec.parse(token)
        _refused(PlanError, _compose("check"), spec, "linear", SHAPE)
        _refused(PlanError, _compose("layout"), spec, SHAPE, "float16")


def check_needs(name: str) -> None:
    """Statistics that are not asked for are not used; a missing or misfit one is named."""
    for token in tokens(name):
        weight, stats = site()
        needs = _compose("needs")(LayerSpec.parse(token))
        only = Stats(**{need.value: getattr(stats, need.value) for need in needs})
        full = compress(token, weight, stats, "float16")
        lean = compress(token, weight, only if needs else None, "float16")
        assert torch.equal(lean.to_dense(), full.to_dense()), token
        if needs:
            _refused(PlanError, compress, token, weight, None, "float16")
            _refused(PlanError, compress, token, weight[:, :16], stats, "float16")


def check_kinds(name: str) -> None:
    """Only the declared kinds of site are accepted."""
    for kind in get_args(SiteKind):
        for token in options(name, "valid"):
            shape = (0, 0) if kind in ("subblock", "cache") else SHAPE
            arguments = (LayerSpec.parse(token), kind, shape)
            if kind in METHODS[name].kinds:
                _compose("check")(*arguments)
            else:
                _refused(UnsupportedError, _compose("check"), *arguments)


def _compose(name: str) -> Callable[..., Any]:
    """Return a function of the methods' composition module."""
    found: Callable[..., Any] = load_object(f"autocomp.methods.compose:{name}")
    return found


def _refused(kind: type[AutocompError], call: Callable[..., object], *arguments: object) -> None:
    """Assert that a call raises an error of that kind."""
    try:
        call(*arguments)
    except kind:
        return
    raise AssertionError(f"{call} accepted {arguments}")
