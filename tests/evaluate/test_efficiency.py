"""Size and operations of a model from its folder."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from autocomp.core.method import Edit
from autocomp.core.plan import Plan
from autocomp.core.sketch import Sketch
from autocomp.core.spec import LayerSpec
from autocomp.cost import decode_flops
from autocomp.evaluate.efficiency import CONTEXT, efficiency, efficiency_of_path
from autocomp.layers.native import native_sketch, write_native
from autocomp.models import load, sketch_of
from autocomp.models.structure import build_sketch
from autocomp.models.surgeon import cut
from autocomp.testing.plans import compress_plan

DOWN = "model.layers.1.mlp.down_proj"
TOKEN = LayerSpec.parse("magnitude-2:4+rtn-w4")


def compressed(folder: Path, source: Path, *, narrow: int | None = None) -> Plan:
    """Write a native folder of a tiny model, its MLPs cut first where ``narrow`` says so."""
    loaded = load(str(source), dtype=torch.float32)
    sketch: Sketch = loaded.sketch
    if narrow is not None:
        kept = torch.arange(narrow)
        cut(loaded.model, Edit({f"model.layers.{block}.mlp": kept for block in range(2)}, {}))
        sketch = build_sketch(loaded.model, "cut", dtype=sketch.dtype)
    variant = "base" if narrow is None else "wandawidth-p50"
    plan = Plan({DOWN: TOKEN}, variant=variant)
    weights = compress_plan(loaded.model, sketch, plan)
    write_native(folder, plan=plan, sketch=sketch, weights=weights, model=loaded.model)
    return plan


def test_a_native_folder_is_compared_with_its_dense_self(
    tmp_path: Path, tiny_llama_path: Path
) -> None:
    folder = tmp_path / "made"
    plan = compressed(folder, tiny_llama_path)
    found = efficiency_of_path(str(folder), context=100)
    assert found is not None
    assert found.weight_bytes == (folder / "model.safetensors").stat().st_size
    assert found.compression_ratio == found.base_weight_bytes / found.weight_bytes > 1
    assert found.base_flops_per_token - found.flops_per_token == 2 * 64 * 128 // 2
    assert found.context == 100
    base = sketch_of(str(tiny_llama_path))
    assert found == efficiency(base, plan, base, context=100)
    assert found == efficiency_of_path(str(folder), str(tiny_llama_path), context=100)


def test_a_dense_model_is_its_own_base(tiny_gpt2_path: Path) -> None:
    found = efficiency_of_path(str(tiny_gpt2_path))
    assert found is not None
    assert (found.compression_ratio, found.context) == (1.0, CONTEXT)
    assert found.flops_per_token == found.base_flops_per_token
    assert found.weight_bytes == found.base_weight_bytes


def test_a_cut_model_needs_its_base(tmp_path: Path, tiny_llama_path: Path) -> None:
    folder = tmp_path / "made"
    plan = compressed(folder, tiny_llama_path, narrow=64)
    assert efficiency_of_path(str(folder)) is None
    found = efficiency_of_path(str(folder), str(tiny_llama_path), context=10)
    assert found is not None
    saved = 2 * (2 * 3 * 64 * 64 + 64 * 64 // 2)  # half of both MLPs, half of what is left of one
    assert found.base_flops_per_token - found.flops_per_token == saved
    assert found.flops_per_token == decode_flops(native_sketch(folder), plan, context=10)


def test_a_dense_export_may_name_its_base(tmp_path: Path, tiny_llama_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
    cut(model, Edit({f"model.layers.{block}.mlp": torch.arange(64) for block in range(2)}, {}))
    model.save_pretrained(tmp_path / "narrow")
    AutoTokenizer.from_pretrained(tiny_llama_path).save_pretrained(tmp_path / "narrow")
    found = efficiency_of_path(str(tmp_path / "narrow"), str(tiny_llama_path), context=10)
    assert found is not None
    assert found.base_flops_per_token - found.flops_per_token == 2 * (2 * 3 * 64 * 64)
