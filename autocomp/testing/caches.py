"""The contract that every cache method fulfils, as functions to call from any test runner.

``names`` lists the methods, ``options`` gives tokens of one; the ``check_…`` functions raise
``AssertionError`` on a breach.
"""

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Generator, Tensor

from autocomp.core.errors import AutocompError, PlanError, UnsupportedError
from autocomp.core.method import CacheMethod
from autocomp.core.registry import METHODS, load_object
from autocomp.core.sketch import DTYPE_BYTES, SiteKind
from autocomp.core.spec import LayerSpec

SHAPE = (2, 16)
TOKENS = 70
LONG = 4096

# Options by method: valid ones, that store something of TOKENS tokens; from most to least error.
_OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "kivi": {
        "valid": ("-k2v2g8r16", "-k4v8g4r32", "-k8v4r32"),
        "ladder": ("-k2v2g8r16", "-k4v4g8r16", "-k8v8g8r16"),
    },
}


def names() -> list[str]:
    """Return the names of the registered cache methods."""
    return [name for name, method in METHODS.items() if method.scope == "cache"]


def options(name: str, kind: str = "valid") -> list[str]:
    """Return tokens of a method; ``kind`` is a key of the table of options."""
    return [name + option for option in _OPTIONS[name][kind]]


def states(seed: int = 0, tokens: int = TOKENS) -> Tensor:
    """Return keys or values (batch, kv heads, tokens, width) fp32 with some loud channels."""
    generator = Generator().manual_seed(seed)
    heads, width = SHAPE
    loud = 1 + 9 * (torch.rand(width, generator=generator) > 0.8)
    return loud * torch.randn((2, heads, tokens, width), generator=generator) + loud


def check_protocol(name: str) -> None:
    """The method is a cache method and applies to caches only."""
    method = METHODS[name]
    assert isinstance(method(), CacheMethod)
    assert method.kinds == {"cache"}
    assert method.spec.slot == "cache"
    check = load_object("autocomp.methods.compose:check")
    for token in options(name):
        for kind in get_args(SiteKind):
            arguments = (LayerSpec.parse(token), kind, SHAPE)
            if kind == "cache":
                check(*arguments)
            else:
                _refused(UnsupportedError, check, *arguments)


def check_tokens(name: str) -> None:
    """Tokens parse back to equal, hashable specs, and different specs have different tokens."""
    written = dict.fromkeys(options(name) + options(name, "ladder"))
    specs = {token: LayerSpec.parse(token) for token in written}
    assert all(spec.token() == token and spec.cache for token, spec in specs.items())
    assert len(set(specs.values())) == len(specs)
    _refused(PlanError, LayerSpec.parse, f"{name}-nonsense")


def check_counts(name: str) -> None:
    """What is stored never exceeds what there is, stays stored, and starts with nothing."""
    for token in options(name):
        method, spec = _of(token)
        before = (0, 0)
        assert method.stored(spec, 0) == before
        for tokens in range(1, TOKENS + 1):
            counts = method.stored(spec, tokens)
            assert all(0 <= count <= tokens for count in counts), (token, tokens)
            assert all(new >= old for new, old in zip(counts, before, strict=True)), (
                token,
                tokens,
            )
            before = counts
        assert all(before), token


def check_path(name: str) -> None:
    """Storing tokens as they become due gives the same as storing them all at once."""
    for token in options(name):
        method, spec = _of(token)
        for part, store in ((0, method.keys), (1, method.values)):
            held, count = states(), 0
            pieces = []
            for tokens in range(1, TOKENS + 1):
                due = method.stored(spec, tokens)[part]
                if due > count:
                    pieces.append(store(spec, held[..., count:due, :]))
                count = due
            whole = store(spec, held[..., :count, :])
            assert torch.equal(torch.cat(pieces, dim=-2), whole), token


def check_pure(name: str) -> None:
    """Inputs stay as they were; shape and dtype too; strides and a second call do not matter."""
    for token in options(name):
        method, spec = _of(token)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for part, store in ((0, method.keys), (1, method.values)):
                given = states()[..., : method.stored(spec, TOKENS)[part], :].to(dtype)
                kept = given.clone()
                first = store(spec, given)
                assert torch.equal(given, kept), token
                assert first.shape == given.shape
                assert first.dtype == dtype
                strided = given.transpose(1, 2).contiguous().transpose(1, 2)
                assert torch.equal(store(spec, strided), first), token
                assert store(spec, given[..., :0, :]).shape[-2] == 0


def check_monotone(name: str, seeds: int = 5) -> None:
    """The ladder's options err less and less, keys and values, on average over seeds."""
    for part in (0, 1):
        errors = []
        for token in options(name, "ladder"):
            method, spec = _of(token)
            store = (method.keys, method.values)[part]
            total = 0.0
            for seed in range(seeds):
                given = states(seed)[..., : method.stored(spec, TOKENS)[part], :]
                total += float((store(spec, given) - given).square().sum())
            errors.append(total)
        assert errors == sorted(errors, reverse=True), errors
        assert errors[0] > errors[-1]


def check_bytes(name: str) -> None:
    """Nothing stored costs full precision, a long context less, and twice the heads twice."""
    heads, width = SHAPE
    for token in options(name):
        method, spec = _of(token)
        for dtype in ("float16", "bfloat16"):
            for context in range(TOKENS):
                if method.stored(spec, context) == (0, 0):
                    full = 2 * context * heads * width * DTYPE_BYTES[dtype]
                    assert method.nbytes(spec, SHAPE, context, dtype) == full, (token, context)
            found = method.nbytes(spec, SHAPE, LONG, dtype)
            assert 0 < found < 2 * LONG * heads * width * DTYPE_BYTES[dtype], token
            assert method.nbytes(spec, (2 * heads, width), LONG, dtype) == 2 * found, token


def check_edges(name: str) -> None:
    """Constant keys and values come back, up to float16."""
    for token in options(name):
        method, spec = _of(token)
        for part, store in ((0, method.keys), (1, method.values)):
            given = torch.zeros_like(states())[..., : method.stored(spec, TOKENS)[part], :]
            for constant in (0.0, 1.0, -3.5):
                found = store(spec, given + constant)
                assert bool(torch.isfinite(found).all()), token
                assert float((found - constant).abs().max()) < 2e-3 * abs(constant) + 1e-9, token


def _of(token: str) -> tuple[Any, Any]:
    """Return the method and the spec of a token."""
    spec = LayerSpec.parse(token).cache
    return METHODS[spec.method](), spec


def _refused(kind: type[AutocompError], call: Callable[..., object], *arguments: object) -> None:
    """Assert that a call raises an error of that kind."""
    try:
        call(*arguments)
    except kind:
        return
    raise AssertionError(f"{call} accepted {arguments}")
