"""The contract that every registered format fulfils, as functions to call from any test runner.

``examples`` makes weights of a format from a seed, each with the dense weight that it must decode
to, worked out without the format's own code; the ``check_…`` functions raise ``AssertionError`` on
a breach.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from autocomp.core.errors import StoreError, UnsupportedError
from autocomp.core.registry import FORMATS
from autocomp.formats.base import CompressedWeight, format_from_json, tensor_info
from autocomp.formats.bitmask import Bitmask
from autocomp.formats.dense import Dense
from autocomp.formats.factors import Factors
from autocomp.formats.io import file_nbytes, load, save
from autocomp.formats.leaf import GridLeaf
from autocomp.formats.nm import NM
from autocomp.formats.prepared import Prepared
from autocomp.formats.steps import Permutation, Rotation, RoundInput, Scale, ScaledRotation, Step
from autocomp.formats.sum import Sum
from autocomp.formats.uniform import Grid, Uniform
from autocomp.formats.uniform_tensor import UniformTensor
from autocomp.testing.nonuniform import MAKERS as NONUNIFORM
from autocomp.testing.nonuniform import input_error, rounded_floats

GRIDS = (
    Grid(2, 8),
    Grid(3, 24),
    Grid(4, None),
    Grid(5, 8, symmetric=True),
    Grid(6, None, symmetric=True),
    Grid(8, 12),
)
SHAPES = ((7, 24), (1, 24), (16, 48))


@dataclass(frozen=True, slots=True)
class Example:
    """A compressed weight and what it must decode to, (out, in) fp32."""

    weight: CompressedWeight
    dense: Tensor


def examples(name: str, seed: int = 0) -> list[Example]:
    """Return examples of a registered format.

    Raises:
        UnsupportedError: If the format has no examples here; add a function to ``_MAKERS``.
    """
    generator = Generator().manual_seed(seed)
    if name in NONUNIFORM:
        return [Example(*pair) for pair in NONUNIFORM[name](generator)]
    if name not in _MAKERS:
        raise UnsupportedError(f"format {name!r} has no contract examples; add them to _MAKERS.")
    return list(_MAKERS[name](generator))


def check_layout(example: Example) -> None:
    """Tensors are those of the layout, and their bytes those that it predicts."""
    weight = example.weight
    weight.check()
    found = {name: tensor_info(tensor) for name, tensor in weight.tensors.items()}
    assert found == weight.layout.tensors()
    assert list(found) == list(weight.layout.tensors()), "the order of the tensors differs"
    assert weight.nbytes == weight.layout.nbytes
    assert type(weight.layout) is FORMATS[weight.layout.name]


def check_decoding(example: Example) -> None:
    """Decoding gives the expected values in fp32, to the bit, and changes no stored tensor."""
    before = {name: tensor.clone() for name, tensor in example.weight.tensors.items()}
    dense = example.weight.to_dense()
    assert dense.dtype == torch.float32
    assert dense.shape == example.weight.layout.shape
    assert torch.equal(dense, example.dense)
    for name, tensor in before.items():
        assert torch.equal(tensor, example.weight.tensors[name]), f"{name} was modified"


def check_operands(example: Example) -> None:
    """What a linear multiplies gives the outputs of the decoded weight, up to rounded inputs."""
    weight = example.weight.operands().weight
    prepare = example.weight.operands().prepare
    assert weight.dtype == torch.float32
    assert weight.shape == example.dense.shape
    inputs = torch.randn((5, weight.shape[1]), generator=Generator().manual_seed(2))
    expected = inputs @ example.dense.T
    size = inputs.abs() @ example.dense.abs().T + 1
    if prepare is None:
        assert torch.equal(weight, example.dense)
        return
    for dtype in (torch.float32, torch.bfloat16):
        found = prepare(inputs.to(dtype)[None])
        assert found.dtype == dtype
        assert found.shape == (1, *inputs.shape)
    allowed = 1e-5 * size + input_error(example.weight, prepare(inputs))
    assert bool(((prepare(inputs) @ weight.T - expected).abs() <= allowed).all())


def check_matmul(example: Example) -> None:
    """Products and rows without a kept copy are those of the decoded weight; none is modified.

    So they are of what :meth:`Format.settle` makes, which gives the stored tensors back.
    """
    layout, stored = example.weight.layout, example.weight.tensors
    weight, prepare = example.weight.operands()
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        inputs = torch.randn((3, layout.shape[1]), generator=Generator().manual_seed(2)).to(dtype)
        read = inputs if prepare is None else prepare(inputs)
        expected, size = read.float() @ weight.T, read.float().abs() @ weight.abs().T + 1
        settled = layout.settle(stored, dtype)
        index = torch.tensor([layout.shape[0] - 1, 0])
        for tensors in (stored, settled):
            found = layout.matmul(tensors, inputs)
            assert found.dtype == dtype
            assert bool(((found.float() - expected).abs() <= bound * size).all())
            rows = layout.rows(tensors, index)
            assert torch.allclose(rows, example.dense[index], rtol=1e-5, atol=1e-5)
        again = layout.unsettle(settled)
        assert list(again) == list(stored)
        for name, tensor in stored.items():  # to the bit
            assert torch.equal(again[name].view(torch.uint8), tensor.view(torch.uint8)), name


def check_description(example: Example) -> None:
    """The layout survives JSON, and one of another version is refused."""
    data = json.loads(json.dumps(example.weight.layout.to_json()))
    assert format_from_json(data) == example.weight.layout
    for damaged in ({**data, "version": -1}, {**data, "unknown": 1}):
        _assert_refused(format_from_json, damaged)


def check_file(example: Example, folder: Path) -> None:
    """The safetensors file has the predicted size and gives the same bits back."""
    path = folder / "weight.safetensors"
    metadata = example.weight.layout.to_json()
    save(path, example.weight.tensors, metadata)
    assert path.stat().st_size == file_nbytes(example.weight.layout.tensors(), metadata)
    tensors, found = load(path)
    restored = CompressedWeight(format_from_json(found), tensors)
    restored.check()
    assert torch.equal(restored.to_dense(), example.dense)


def check_damage(example: Example) -> None:
    """A missing, extra, reshaped or retyped tensor is noticed."""
    layout, tensors = example.weight.layout, example.weight.tensors
    damages = [{**tensors, "unknown": torch.zeros(1)}]
    for name, tensor in tensors.items():
        damages.append({other: tensors[other] for other in tensors if other != name})
        damages.append({**tensors, name: tensor[None]})
        damages.append({**tensors, name: tensor.to(torch.float64)})
    for damaged in damages:
        _assert_refused(CompressedWeight(layout, damaged).check)


def check_fake_quant(example: Example) -> None:
    """Projecting keeps what is stored, gives what can be stored, and lets gradients through."""
    layout, tensors = example.weight.layout, example.weight.tensors
    stored = layout.fake_quant(example.dense, tensors)
    scale = float(example.dense.abs().max())
    assert torch.allclose(stored, example.dense, rtol=0, atol=1e-5 * scale)
    trained = torch.randn(layout.shape, generator=Generator().manual_seed(1)).mul_(scale)
    trained.requires_grad_(True)
    projected = layout.fake_quant(trained, tensors)
    again = layout.fake_quant(projected.detach(), tensors)
    assert torch.allclose(again, projected, rtol=0, atol=1e-4 * scale), "not idempotent"
    if layout.nbytes:
        (gradient,) = torch.autograd.grad(projected.sum(), trained)
        passed = (gradient - 1).abs() < 1e-5
        assert bool((passed | (gradient == 0)).all())
        assert bool(passed[projected != 0].all()), "a stored weight gets no gradient"


def check_store(example: Example) -> None:
    """A trained weight is stored in the same layout, around what stays, as it was projected."""
    layout, tensors = example.weight.layout, example.weight.tensors
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    scale = float(example.dense.abs().max())
    trained = torch.randn(layout.shape, generator=Generator().manual_seed(1)).mul_(scale)
    stored = layout.store(trained, tensors)
    stored.check()
    assert stored.layout == layout
    assert torch.equal(stored.to_dense(), layout.fake_quant(trained, tensors))
    assert list(stored.tensors) == list(tensors)
    for name, tensor in before.items():
        assert torch.equal(tensor, tensors[name]), f"{name} was modified"
        if name.rpartition(".")[2] not in ("weight", "codes", "values"):
            assert torch.equal(tensor, stored.tensors[name]), f"{name} did not stay"


def check_grid_leaf(example: Example) -> None:
    """The matrix on a grid inside decodes to the operand and goes back to the same bits.

    With other codes and half the scales, where these are not fixed, the layout, the mask and
    everything around stay.
    """
    weight = example.weight
    leaf = weight.grid_leaf(weight.to_dense())
    if leaf is None:
        return
    operand = weight.operands().weight
    assert torch.allclose(_operand(leaf), operand, rtol=0, atol=1e-6 * float(operand.abs().max()))
    again = leaf.regrid(leaf.codes, leaf.scale, leaf.zero)
    assert again.layout == weight.layout
    for name, tensor in weight.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name
    scale = leaf.scale if leaf.fixed else leaf.scale / 2
    other = leaf.regrid((1 << leaf.bits) - 1 - leaf.codes, scale, leaf.zero)
    other.check()
    assert other.layout == weight.layout
    found = other.grid_leaf(other.to_dense())
    assert found is not None
    assert torch.equal(found.scale, scale)
    assert torch.equal(found.zero, leaf.zero)
    kept = torch.ones_like(leaf.codes, dtype=torch.bool) if leaf.keep is None else leaf.keep
    assert torch.equal(found.codes[kept], (1 << leaf.bits) - 1 - leaf.codes[kept])
    for before, after in ((leaf.keep, found.keep), (leaf.offset, found.offset)):
        assert (before is None and after is None) or _same(before, after)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two tensors are there and equal."""
    return one is not None and other is not None and torch.equal(one, other)


def _operand(leaf: GridLeaf) -> Tensor:
    """Return what a linear multiplies, worked out from a leaf."""
    width = leaf.codes.shape[1] // leaf.scale.shape[1]
    scale, zero = (side.repeat_interleave(width, dim=1) for side in (leaf.scale, leaf.zero))
    dense = scale * (leaf.codes - zero)
    if leaf.keep is not None:
        dense = dense * leaf.keep
    return dense if leaf.offset is None else dense + leaf.offset


def _assert_refused(call: Callable[..., object], *arguments: object) -> None:
    """Assert that a call raises ``StoreError``."""
    try:
        call(*arguments)
    except StoreError:
        return
    raise AssertionError(f"{call} accepted damaged data")


def _normal(shape: tuple[int, int], generator: Generator) -> Tensor:
    """Return a random weight with values that fp16 and bf16 hold exactly."""
    return torch.randint(-128, 128, shape, generator=generator).to(torch.float32) / 64


def _on_grid(
    grid: Grid, shape: tuple[int, int], generator: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random codes, scale, zero, and the dense weight that they mean."""
    groups = grid.groups(shape[1])
    codes = torch.randint(0, grid.levels, shape, generator=generator)
    zero = torch.randint(0, grid.levels, (shape[0], groups), generator=generator)
    if grid.symmetric:
        zero.fill_(grid.middle)
    scale = (torch.rand((shape[0], groups), generator=generator) + 0.01).to(torch.float16)
    width = shape[1] // groups
    dense = codes - zero.repeat_interleave(width, dim=1)
    return codes, scale, zero, dense * scale.to(torch.float32).repeat_interleave(width, dim=1)


def _dense(generator: Generator) -> Iterator[Example]:
    for shape in SHAPES:
        for dtype in ("float16", "bfloat16", "float32"):
            weight = _normal(shape, generator)
            yield Example(Dense(shape, dtype).pack(weight), weight)


def _uniform(generator: Generator) -> Iterator[Example]:
    for shape in SHAPES:
        for grid in GRIDS:
            codes, scale, zero, dense = _on_grid(grid, shape, generator)
            layout = Uniform(shape, grid.bits, grid.group_size, grid.symmetric)
            yield Example(layout.pack(codes, scale, None if grid.symmetric else zero), dense)


def _masked(
    layout: Bitmask | NM, mask: Tensor, shape: tuple[int, int], generator: Generator
) -> Example:
    if layout.grid is None:
        dense = _normal(shape, generator)
        packed = layout.pack(mask, dense)
    else:
        codes, scale, zero, dense = _on_grid(layout.grid, shape, generator)
        packed = layout.pack(mask, codes, scale, None if layout.grid.symmetric else zero)
    return Example(packed, torch.where(mask, dense, 0.0))


def _bitmask(generator: Generator) -> Iterator[Example]:
    for shape in SHAPES:
        mask = torch.rand(shape, generator=generator) < 0.4
        for grid in (None, *GRIDS):
            layout = Bitmask(shape, int(mask.sum()), "float16", grid)
            yield _masked(layout, mask, shape, generator)


def _nm(generator: Generator) -> Iterator[Example]:
    for shape in SHAPES:
        for keep, m in ((2, 4), (1, 2), (3, 8), (1, 3)):
            order = torch.rand((shape[0], shape[1] // m, m), generator=generator).argsort(dim=2)
            mask = (order < keep).view(shape)
            for grid in (None, *GRIDS):
                yield _masked(NM(shape, keep, m, "float16", grid), mask, shape, generator)


def _factors(generator: Generator) -> Iterator[Example]:
    shape, rank = (16, 48), 8
    outer, inner = (shape[0], rank), (rank, shape[1])
    for grid in (None, Grid(4, 8), Grid(3, None, symmetric=True)):
        factors = []
        for side in (outer, inner):
            if grid is None:
                weight = _normal(side, generator)
                factors.append(Example(Dense(side, "float16").pack(weight), weight))
            else:
                codes, scale, zero, weight = _on_grid(grid, side, generator)
                layout = Uniform(side, grid.bits, grid.group_size, grid.symmetric)
                factors.append(Example(layout.pack(codes, scale, zero), weight))
        left, right = factors
        product = Factors(shape, rank, left.weight.layout, right.weight.layout)
        yield Example(product.pack(left.weight, right.weight), left.dense @ right.dense)
        codes = torch.randint(0, 16, outer, generator=generator)
        packed = UniformTensor(outer, 4).pack(codes, torch.full((1, 1), 0.375), torch.ones(1, 1))
        product = Factors(shape, rank, packed.layout, right.weight.layout)
        yield Example(product.pack(packed, right.weight), (codes - 1) * 0.375 @ right.dense)


def _prepared(generator: Generator) -> Iterator[Example]:
    """Steps whose numbers are powers of two, so that decoding them is exact.

    The rotations are of a width whose Hadamard matrix has such entries; that steps change the
    weight as they change inputs is worked out from what they do to the unit vectors.
    """
    grid, shape, unit = Grid(4, 8), (7, 16), torch.eye(16)
    scale = 2.0 ** torch.randint(-3, 4, (shape[1],), generator=generator)
    static = {"scale": torch.tensor([8.0])}
    steps: list[tuple[Step, dict[str, Tensor]]] = [
        (Scale(shape[1]), {"scale": scale.half()}),
        (Permutation(shape[1]), {"order": scale.argsort(stable=True).short()}),
        *((Rotation(shape[1], "hadamard", seed), {}) for seed in (0, 7)),
        (ScaledRotation(shape[1], "hadamard"), {"scale": scale.half()}),
    ]
    for inner in (Dense(shape, "float16"), Uniform(shape, grid.bits, grid.group_size)):
        if isinstance(inner, Dense):
            dense = _normal(shape, generator)
            weight = inner.pack(dense)
        else:
            codes, spacing, zero, dense = _on_grid(grid, shape, generator)
            weight = inner.pack(codes, spacing, zero)
        for rounding in (None, RoundInput(shape[1], 8), RoundInput(shape[1], 4, "tensor")):
            stored = static if rounding and rounding.granularity == "tensor" else {}
            for step, made in steps:
                layout = Prepared(shape, weight.layout, step, rounding)
                yield Example(layout.pack(weight, made, stored), dense @ step.apply(unit, made).T)
            if rounding is not None:
                plain = Prepared(shape, weight.layout, None, rounding)
                yield Example(plain.pack(weight, {}, stored), dense)
    yield from (Example(*pair) for pair in rounded_floats(generator))


def _sum(generator: Generator) -> Iterator[Example]:
    grid, shape = Grid(3, 8), (16, 48)
    codes, scale, zero, dense = _on_grid(grid, shape, generator)
    base = Uniform(shape, grid.bits, grid.group_size).pack(codes, scale, zero)
    outliers = (Example(*pair) for pair in NONUNIFORM["outliers"](generator))
    for part in (*outliers, *_factors(generator)):
        if part.weight.layout.shape == shape:
            added = Sum(shape, base.layout, part.weight.layout)
            yield Example(added.pack(base, part.weight), dense + part.dense)


_MAKERS: dict[str, Callable[[Generator], Iterator[Example]]] = {
    "dense": _dense,
    "uniform": _uniform,
    "bitmask": _bitmask,
    "nm": _nm,
    "factors": _factors,
    "prepared": _prepared,
    "sum": _sum,
}
