import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.formats.base import CompressedWeight
from autocomp.layers.linear import (
    CompressedEmbedding,
    CompressedLinear,
    TiedHead,
    site_embedding,
    site_linear,
)
from autocomp.testing.plans import LINEAR_TOKENS

INPUTS = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))


def weight(token: str) -> CompressedWeight:
    dense = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    compress = load_object("autocomp.methods.compose:compress")
    return compress(dense, LayerSpec.parse(token), None, "float16")


@pytest.mark.parametrize("token", LINEAR_TOKENS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_dense_product(token: str, bias: bool) -> None:
    packed = weight(token)
    vector = torch.arange(48.0) if bias else None
    expected = functional.linear(INPUTS, packed.to_dense(), vector)
    decoded = site_linear(packed, vector, torch.float32, "decoded")
    assert torch.equal(decoded(INPUTS), expected)
    module = site_linear(packed, vector, torch.float32)
    torch.testing.assert_close(module(INPUTS), expected, rtol=1e-5, atol=1e-4)
    names = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    planned = {name: info.shape for name, info in packed.layout.tensors().items()}
    assert names == planned | ({"bias": (48,)} if bias else {})


@pytest.mark.parametrize("token", ["dense", "rtn-w3g32"])
def test_embedding_and_tied_head(token: str) -> None:
    packed = weight(token)
    module = site_embedding(packed, nn.Embedding(48, 64, device="meta"), torch.float32)
    tokens = torch.tensor([[0, 47, 3]])
    assert torch.equal(module(tokens), packed.to_dense()[tokens])
    head = TiedHead(module)
    assert torch.equal(head(INPUTS), INPUTS @ packed.to_dense().T)
    assert not head.state_dict()
    biased = TiedHead(module, nn.Parameter(torch.arange(48.0)))
    torch.testing.assert_close(biased(INPUTS), head(INPUTS) + torch.arange(48))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("token", ["dense", "rtn-w3g32"])
def test_scaled_embedding_rounds_as_the_original(token: str, dtype: torch.dtype) -> None:
    packed = weight(token)
    original = Gemma3TextScaledWordEmbedding(48, 64, None, embed_scale=300**0.5)
    original.weight.data.copy_(packed.to_dense())
    tokens = torch.arange(48)
    expected = original.to(dtype)(tokens)
    module = site_embedding(packed, original, dtype)
    assert torch.equal(module(tokens), expected)


def test_casts_change_the_compute_dtype_only() -> None:
    packed = weight("svd-r16+rtn-w8")
    module = CompressedLinear(packed, torch.ones(48), torch.float32)
    module(INPUTS)
    module.to(torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16
    assert module.bias is not None
    assert module.bias.dtype == torch.bfloat16
    assert torch.equal(module.weight, packed.to_dense().to(torch.bfloat16))
    module.float()
    assert torch.equal(module.weight, packed.to_dense())
    kept = module.compressed()
    kept.check()
    assert all(torch.equal(kept.tensors[name], packed.tensors[name]) for name in packed.tensors)


def test_rounded_copy_is_what_a_dense_file_holds() -> None:
    packed = weight("rtn-w3g32")
    module = CompressedLinear(packed, None, torch.float32)
    module.keep_rounded(torch.float16)
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, packed.to_dense().half().float())
    assert not torch.equal(module.weight, packed.to_dense())


def test_decoded_copy_is_kept_and_forgotten() -> None:
    module = CompressedEmbedding(weight("rtn-w4g16"), torch.float32, memory="decoded")
    first = module.weight
    assert module.weight is first
    module.forget()
    assert module.weight is not first
    other = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}
    module.load_state_dict(other)
    assert module.weight.abs().max() == 0
