"""What a module under the memory policy ``packed`` holds and computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import autocomp
from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.cost import native_infos
from autocomp.formats.base import CompressedWeight
from autocomp.kernels.int4_tile_matmul import lacks_tiles
from autocomp.layers import write_native
from autocomp.layers.linear import (
    CompressedEmbedding,
    CompressedLinear,
    CompressedModule,
    TiedHead,
)
from autocomp.testing.formats import examples
from autocomp.testing.plans import LINEAR_TOKENS, compress_plan

KINDS = ("uniform", "bitmask", "nm", "factors", "prepared", "sum", "bypass")
TOKENS = torch.arange(3, 23)[None]


def weight(token: str, shape: tuple[int, int] = (128, 64)) -> CompressedWeight:
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    compress = load_object("autocomp.methods.compose:compress")
    return compress(dense, LayerSpec.parse(token), None, "float16")


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("token", LINEAR_TOKENS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 40])
def test_packed_computes_what_decoded_does(token: str, dtype: torch.dtype, rows: int) -> None:
    packed = weight(token)
    module = CompressedLinear(packed, torch.ones(128), dtype)
    x = inputs(2, rows, 64).to(dtype)
    expected = x.float() @ packed.to_dense().T + 1
    error = (module(x).float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert module(x).dtype == dtype
    assert error < {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert module._decoded is None


@pytest.mark.parametrize("name", KINDS)
def test_settled_tensors_keep_the_bits_and_about_the_bytes(name: str) -> None:
    for example in examples(name):
        module = CompressedLinear(example.weight, None, torch.bfloat16)
        module.settle()
        held = sum(tensor.nbytes for tensor in module.packed().values())
        assert held <= 1.2 * example.weight.nbytes
        for stored in (module.compressed().tensors, module.state_dict()):
            assert list(stored) == list(example.weight.tensors)
            for local, tensor in example.weight.tensors.items():
                assert stored[local].dtype == tensor.dtype
                assert torch.equal(
                    *(t.reshape(-1).view(torch.uint8) for t in (stored[local], tensor))
                )


@pytest.mark.skipif(lacks_tiles() is not None, reason=str(lacks_tiles()))
@pytest.mark.parametrize("token", ["rtn-w4g32", "rtn-w4g64-sym", "svd-r64+rtn-w4g64"])
def test_four_bits_settle_into_tiles(token: str) -> None:
    packed = weight(token)
    module = CompressedLinear(packed, None, torch.bfloat16)
    first = module(inputs(1, 64).bfloat16())
    assert any(name.endswith("tiles") for name in module.packed())
    other = CompressedLinear(weight(token), None, torch.bfloat16)
    other.load_state_dict(module.state_dict())
    assert not any(name.endswith("tiles") for name in module.packed())
    assert torch.equal(other(inputs(1, 64).bfloat16()), first)
    assert torch.equal(module(inputs(1, 64).bfloat16()), first)
    module.float()
    exact = inputs(1, 64) @ packed.to_dense().T
    torch.testing.assert_close(module(inputs(1, 64)), exact, rtol=1e-5, atol=1e-4)


def test_zero_points_beyond_half_precision_multiply() -> None:
    layout = weight("rtn-w4g64").layout
    codes = torch.zeros(128, 64, dtype=torch.uint8)
    scale, zero = torch.full((128, 1), 60000.0), torch.full((128, 1), 15)
    packed = layout.pack(codes, scale, zero)
    x = inputs(1, 64).bfloat16()
    found = CompressedLinear(packed, None, torch.bfloat16)(x)
    exact = x.double() @ packed.to_dense().double().T
    torch.testing.assert_close(found.double(), exact, rtol=0.02, atol=0)


def test_gradients_pass_to_the_inputs() -> None:
    packed = weight("rtn-w4g32")
    module = CompressedLinear(packed, None, torch.float32)
    x = inputs(3, 64).requires_grad_(True)
    (gradient,) = torch.autograd.grad(module(x).sum(), x)
    torch.testing.assert_close(gradient, packed.to_dense().sum(0).expand(3, -1))


@pytest.mark.parametrize("token", ["rtn-w4g64", "rtn-w3", "rtn-w8", "svd-p50+rtn-w8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embedding_rows_are_those_of_the_table(token: str, dtype: torch.dtype) -> None:
    packed = weight(token)
    module = CompressedEmbedding(packed, dtype, scale=3.0)
    tokens = torch.tensor([[0, 127, 33], [64, 33, 31]])
    expected = packed.to_dense()[tokens].to(dtype) * 3
    torch.testing.assert_close(module(tokens), expected)
    assert module._decoded is None
    head = TiedHead(module, nn.Parameter(torch.ones(128, dtype=dtype)))
    logits = inputs(2, 64) @ packed.to_dense().T + 1
    found = head(inputs(2, 64).to(dtype)).float()
    assert (found - logits).abs().max() < (1e-4 if dtype == torch.float32 else 0.3)
    assert module._decoded is None


def test_only_the_rows_asked_for_are_decoded(monkeypatch) -> None:
    module = CompressedEmbedding(weight("rtn-w4g64"), torch.float32)
    monkeypatch.setattr(type(module.layout), "to_dense", None)
    assert module(torch.tensor([5])).shape == (1, 64)


def packed_model(tiny_of: Callable, folder: Path, token: str) -> tuple[nn.Module, Plan]:
    loaded = tiny_of("llama")
    plan = Plan({site.name: LayerSpec.parse(token) for site in loaded.sketch.weights()})
    weights = compress_plan(loaded.model, loaded.sketch, plan)
    write_native(folder, plan=plan, sketch=loaded.sketch, weights=weights, model=loaded.model)
    return loaded, plan


@pytest.mark.parametrize(
    ("token", "dtype"),
    [("rtn-w4g64", torch.bfloat16), ("rtn-w3g32", torch.float16), ("rtn-w8", torch.bfloat16)],
)
def test_no_dense_copy_stays(
    token: str, dtype: torch.dtype, tiny_of: Callable, tmp_path: Path
) -> None:
    loaded, plan = packed_model(tiny_of, tmp_path / "native", token)
    planned = sum(info.nbytes for info in native_infos(loaded.sketch, plan).values())
    model = autocomp.load(tmp_path / "native", dtype=dtype)
    model.generate(TOKENS, max_new_tokens=3, do_sample=False)
    held = {}
    for module in model.modules():
        for tensor in tensors_in(list(vars(module).values())):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert planned <= sum(held.values()) <= 1.15 * planned
    model.get_submodule("model.layers.0.mlp.up_proj").memory = "decoded"
    model(TOKENS)
    kept = model.get_submodule("model.layers.0.mlp.up_proj")
    assert [t.numel() for t in tensors_in([kept._decoded])] == [kept.weight.numel()]


def tensors_in(value: object) -> list[torch.Tensor]:
    """Return the tensors in nested containers; modules and other objects are not entered."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    inner = value if isinstance(value, list | tuple) else ()
    return [tensor for item in inner for tensor in tensors_in(item)]


def test_one_graph_for_any_number_of_rows() -> None:
    layers = [CompressedLinear(weight(t), None, torch.bfloat16) for t in ("rtn-w4g32", "rtn-w3")]
    model = nn.Sequential(
        CompressedEmbedding(weight("rtn-w4g64"), torch.bfloat16), layers[0], nn.Linear(128, 64)
    ).to(torch.bfloat16)
    model.append(layers[1])
    torch._dynamo.reset()
    with torch.inference_mode():
        expected = {count: model(torch.arange(count)) for count in (2, 3, 40)}
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
        for count, logits in expected.items():
            assert torch.equal(compiled(torch.arange(count)), logits)
        for module in model:
            if isinstance(module, CompressedModule):
                module.unsettle()  # as before the first use: the graph reads the stored order
        torch._dynamo.reset()
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(torch.arange(40))
    assert not any("tiles" in name for name, _ in model.named_buffers())
    error = (found.float() - expected[40].float()).square().mean().sqrt()
    assert error <= 0.02 * expected[40].float().square().mean().sqrt()
