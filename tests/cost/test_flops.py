"""Operations by hand, and as torch counts them in a real forward pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.cost import decode_flops, prefill_flops
from autocomp.formats.bypass import Bypass
from autocomp.models import sketch_of
from autocomp.models.surgeon import MlpShape
from autocomp.models.tiny import FAMILIES, tiny

Make = Callable[[str], Sketch]
BLOCK_0 = "model.layers.0"
DOWN = f"{BLOCK_0}.mlp.down_proj"
ATTENTION_WIDTH = 64  # 4 heads of 16; 2 of them for keys


def by_hand(context: int) -> int:
    """The tiny Llama: q, k, v, o, then gate, up, down, in two blocks; the tied head."""
    linears = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
    return 2 * (2 * linears + 4 * ATTENTION_WIDTH * context) + 2 * 264 * 64


def counted(run: Callable[[], object]) -> tuple[int, int]:
    """Operations that torch counts: in all, and those of batched products (eager attention).

    Rotary tables are made by a small batched product, which is no part of the model's work.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()
    rotary = [found for name, found in counts.items() if name.endswith("rotary_emb")]
    tables = sum(sum(found.values()) for found in rotary)
    batched = counts["Global"].get(torch.ops.aten.bmm, 0) - tables
    return counter.get_total_flops() - tables, batched


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_equals_what_torch_counts(tmp_path: Path, family: str) -> None:
    folder = str(tiny(family, tmp_path / family))
    sketch = sketch_of(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.arange(3, 3 + 7)[None]  # shorter than the sliding window of the one that has it
    cache = DynamicCache(config=model.config)
    model(ids[:, :-1], past_key_values=cache)
    decoding, _ = counted(lambda: model(ids[:, -1:], past_key_values=cache))
    assert decode_flops(sketch, Plan({}), context=7) == decoding
    reading, square = counted(lambda: model(ids, use_cache=False, logits_to_keep=1))
    half = square * (7 + 1) // (2 * 7)  # token t needs t of the 7 columns that torch multiplies
    assert square > 0
    assert prefill_flops(sketch, Plan({}), context=7) == reading - square + half


@pytest.mark.parametrize("context", [1, 1000])
def test_values_by_hand(sketch_of_family: Make, context: int) -> None:
    sketch = sketch_of_family("llama")
    assert decode_flops(sketch, Plan({}), context=context) == by_hand(context)
    head = 2 * 264 * 64
    steps = sum(by_hand(token) - head for token in range(1, context + 1))
    assert prefill_flops(sketch, Plan({}), context=context) == steps + head


@pytest.mark.parametrize(
    ("token", "multiply_adds"),
    [
        ("rtn-w4g64", 64 * 128),  # bits change nothing
        ("svd-r8", 8 * (64 + 128)),
        ("svd-r8+rtn-w8", 8 * (64 + 128)),
        ("magnitude-s50", 64 * 128 // 2),
        ("magnitude-1:4", 64 * 128 // 4),
        ("magnitude-2:4+rtn-w4", 64 * 128 // 2),
        ("rtn-w3g64+lorc-r4", 64 * 128 + 4 * (64 + 128)),
        ("magnitude-2:4+rtn-w4+lorc-r4", 64 * 128 // 2 + 4 * (64 + 128)),
        ("awq+rtn-w4", 64 * 128),  # a scale works by elements
        # 128 = 16 · 8: two Hadamard factors
        ("rotation-hadamard+rtn-w4", 64 * 128 + 128 * (16 + 8)),
    ],
)
def test_a_linear_counts_what_it_multiplies(
    sketch_of_family: Make, token: str, multiply_adds: int
) -> None:
    sketch = sketch_of_family("llama")
    assert sketch[DOWN].shape == (64, 128)
    found = decode_flops(sketch, Plan({DOWN: LayerSpec.parse(token)}), context=10)
    assert by_hand(10) - found == 2 * (64 * 128 - multiply_adds)


def test_bypassed_subblocks_do_nothing(sketch_of_family: Make) -> None:
    sketch, context = sketch_of_family("llama"), 50
    bypass = LayerSpec.parse("bypass")
    linears = 64 * 64 + 2 * 64 * 32 + 64 * 64
    for name, saved in (
        ("self_attn", 2 * linears + 4 * ATTENTION_WIDTH * context),
        ("mlp", 2 * 3 * 64 * 128),
    ):
        # what the plan says about a linear inside changes nothing any more
        layers = {f"{BLOCK_0}.{name}": bypass, DOWN: LayerSpec.parse("magnitude-s50")}
        inside = {"mlp": 0, "self_attn": 2 * 64 * 128 // 2}[name]
        found = decode_flops(sketch, Plan(layers), context=context)
        assert by_hand(context) - found == saved + inside
    assert Bypass((64, 128)).multiply_adds == 0


def test_an_untied_head_counts_once_and_the_lookup_never(sketch_of_family: Make) -> None:
    tied, untied = sketch_of_family("llama"), sketch_of_family("llama-untied")
    assert decode_flops(untied, Plan({}), context=3) == decode_flops(tied, Plan({}), context=3)
    rounded = Plan({"lm_head": LayerSpec.parse("rtn-w4")})
    assert decode_flops(untied, rounded, context=3) == by_hand(3)


def test_a_cut_mlp_counts_its_own_width(tmp_path: Path) -> None:
    folder = str(tiny("llama", tmp_path / "llama"))
    sketch = sketch_of(folder, {f"{BLOCK_0}.mlp": MlpShape(width=96, bias=False)})
    assert by_hand(10) - decode_flops(sketch, Plan({}), context=10) == 2 * 3 * 64 * (128 - 96)
