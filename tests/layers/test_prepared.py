"""Linears whose input is scaled, rotated or rounded first, packed and on a live model."""

from collections.abc import Callable

import pytest
import torch

from autocomp.calibrate.walker import watch_inputs
from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.spec import LayerSpec
from autocomp.core.stats import Stats
from autocomp.formats.base import CompressedWeight
from autocomp.layers.apply import Candidate
from autocomp.layers.linear import CompressedLinear
from autocomp.models.weights import get_weight

TOKENS = torch.arange(5, 29).reshape(1, 24)
INPUTS = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
SPECS = (
    "smoothquant+rtn-w4g16",
    "rotation-hadamard+rtn-w4g16",
    "rotation-orthogonal-s7+rtn-w8-sym+absmax-a8",
    "smoothquant+rtn-w8-sym+absmax-a8-tensor",
    "rtn-w8-sym+absmax-a4",
    "rtn-w8-sym+llmint8-t1",
)


def compressed(weight: torch.Tensor, token: str) -> CompressedWeight:
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(64, weight.shape[1], generator=generator)
    stats = Stats(sample=sample, absmax=sample.abs().amax(dim=0))
    return load_object("autocomp.methods.compose:compress")(
        weight.float(), LayerSpec.parse(token), stats, "float16"
    )


@pytest.mark.parametrize("token", SPECS)
def test_linear_multiplies_what_its_weight_expects(token: str) -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    packed = compressed(weight, token)
    module = CompressedLinear(packed, torch.arange(48.0), torch.float32)
    operands = packed.operands()
    assert operands.prepare is not None
    expected = operands.prepare(INPUTS) @ operands.weight.T + torch.arange(48.0)
    torch.testing.assert_close(module(INPUTS), expected)
    module.bfloat16()
    assert module(INPUTS.bfloat16()).dtype == torch.bfloat16
    module.float()
    torch.testing.assert_close(module(INPUTS), expected)
    module.keep_rounded(torch.float16)
    merged = packed.to_dense().half().float()
    torch.testing.assert_close(module(INPUTS), INPUTS @ merged.T + torch.arange(48.0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("token", SPECS)
def test_candidate_computes_what_the_module_does(
    tiny_of: Callable, family: str, token: str
) -> None:
    loaded = tiny_of(family)
    name = [site.name for site in loaded.sketch.weights() if site.kind == "linear"][3]
    weight = compressed(get_weight(loaded.model, name), token)
    candidate = Candidate(loaded.model, loaded.sketch)
    candidate.apply(Plan({}), lambda *_: weight.operands())
    dense, seen, inputs = loaded.model(TOKENS).logits, [], []
    module = loaded.model.get_submodule(name)

    def see(_: str, rows: torch.Tensor) -> None:
        inputs.append(rows)

    candidate.apply(Plan({name: LayerSpec.parse(token)}), lambda *_: weight.operands())
    with watch_inputs({name: module}, see):
        handle = module.register_forward_hook(lambda *args: seen.append(args[2]))
        changed = loaded.model(TOKENS).logits
        handle.remove()
    # what is watched is the input before the step, so that statistics are those of the model
    packed = CompressedLinear(weight, module.bias, torch.float32)
    torch.testing.assert_close(packed(inputs[0]), seen[0].flatten(0, -2), rtol=1e-4, atol=1e-5)
    assert not torch.equal(changed, dense)
    candidate.apply(Plan({}), lambda *_: weight.operands())
    assert torch.equal(loaded.model(TOKENS).logits, dense)
    candidate.put(name, weight.operands())
    assert torch.equal(loaded.model(TOKENS).logits, changed)
    candidate.restore()
    assert not module._forward_pre_hooks
