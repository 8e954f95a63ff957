from pathlib import Path

import pytest
import torch

from autocomp.models import load, structure
from autocomp.models.tiny import FAMILIES, tiny
from autocomp.models.wiring import trace


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_adds_what_its_sub_blocks_are_said_to_add(family: str, tmp_path: Path) -> None:
    model = load(str(tiny(family, tmp_path / family)), dtype=torch.float32).model
    parts = structure(model)
    outputs = trace(parts).outputs
    added: list[torch.Tensor] = []
    through: list[torch.Tensor] = []

    def keep(_: object, __: object, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        added.append(tensor.reshape(1, 20, 64))

    for name in (parts.attention_name(0), parts.mlp_name(0)):
        parts.get(outputs[name]).register_forward_hook(keep)
    for block in parts.blocks:
        block.register_forward_pre_hook(lambda _, args: through.append(args[0]))
    model(torch.arange(10, 30)[None])
    torch.testing.assert_close(through[0] + added[0] + added[1], through[1])


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    model = load(str(tiny("gemma3", tmp_path / "model"))).model
    trace(structure(model))
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks, *module._forward_pre_hooks)
    ]
    assert not hooks


def test_norms_behind_sub_blocks_are_their_outputs(tmp_path: Path) -> None:
    parts = structure(load(str(tiny("gemma3", tmp_path / "model"))).model)
    wiring = trace(parts)
    block = "model.layers.1"
    assert wiring.outputs[f"{block}.self_attn"] == f"{block}.post_attention_layernorm"
    assert wiring.outputs[f"{block}.mlp"] == f"{block}.post_feedforward_layernorm"
    assert wiring.norms[f"{block}.mlp.up_proj"] == f"{block}.pre_feedforward_layernorm"
    assert f"{block}.mlp.down_proj" not in wiring.norms
