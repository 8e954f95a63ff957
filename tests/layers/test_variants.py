"""Native and dense folders of models whose MLPs were cut."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import autocomp
from autocomp.core.errors import StoreError, UnsupportedError
from autocomp.core.method import Edit
from autocomp.core.plan import Plan
from autocomp.cost import weight_bytes
from autocomp.export import export_model
from autocomp.layers import Candidate, write_native
from autocomp.layers.native import WEIGHTS_FILE, native_sketch
from autocomp.models import LoadedModel
from autocomp.models.structure import build_sketch, structure
from autocomp.models.surgeon import cut, mlp_shapes
from autocomp.testing.plans import compress_plan, random_plan

TOKENS = torch.arange(3, 43).reshape(2, 20)


def cut_model(loaded: LoadedModel, widths: tuple[int, int], *, bias: bool) -> LoadedModel:
    """Cut both MLPs of a tiny model, and give the second one's output a bias."""
    parts = structure(loaded.model)
    kept = {
        name: torch.arange(128)[-width:]
        for name, width in zip(parts.mlp_names, widths, strict=True)
    }
    output = parts.linears(parts.mlp_names[-1])[-1]
    cut(loaded.model, Edit(kept, {output: torch.linspace(-1, 1, 64)} if bias else {}))
    sketch = build_sketch(loaded.model, "cut", dtype=loaded.sketch.dtype)
    return replace(loaded, sketch=sketch)


def write(loaded: LoadedModel, plan: Plan, folder: Path) -> dict:
    weights = compress_plan(loaded.model, loaded.sketch, plan)
    write_native(
        folder, plan=plan, sketch=loaded.sketch, weights=weights, model=loaded.model,
        tokenizer=loaded.tokenizer,
    )  # fmt: skip
    return weights


def variant_plan(loaded: LoadedModel, seed: int) -> Plan:
    return replace(random_plan(loaded.sketch, seed), variant="flap-p50")


def test_size_and_logits_equal_the_candidate(tiny_model, tmp_path):
    loaded = cut_model(tiny_model, (128, 64), bias=True)
    candidate = Candidate(loaded.model, loaded.sketch)
    for seed in range(3):
        plan = variant_plan(loaded, seed)
        candidate.restore()
        weights = write(loaded, plan, tmp_path / "native")
        size = (tmp_path / "native" / WEIGHTS_FILE).stat().st_size
        assert size == weight_bytes(loaded.sketch, plan)
        found = native_sketch(tmp_path / "native")
        assert found.sites == loaded.sketch.sites
        assert found.rest == loaded.sketch.rest
        candidate.apply(plan, lambda site, spec, held=weights: held[site].operands())
        again = autocomp.load(tmp_path / "native", dtype=torch.float32, memory="decoded")
        with torch.no_grad():
            expected = loaded.model(TOKENS, use_cache=False).logits
            assert torch.equal(again(TOKENS, use_cache=False).logits, expected)


def test_native_export_gives_the_same_file(tiny_of, tmp_path):
    loaded = cut_model(tiny_of("llama"), (128, 64), bias=True)
    write(loaded, variant_plan(loaded, 0), tmp_path / "native")
    report = export_model(tmp_path / "native", tmp_path / "out", format="native")
    assert report.kl_nats == 0.0
    assert report.weight_bytes == weight_bytes(loaded.sketch, variant_plan(loaded, 0))


@pytest.mark.parametrize(
    ("widths", "bias", "names"),
    [
        ((128, 64), False, ["model.layers.1.mlp"]),
        ((64, 64), True, ["model.layers.1.mlp"]),
        ((64, 128), True, ["model.layers.0.mlp", "model.layers.1.mlp"]),
    ],
)
def test_what_plain_transformers_cannot_build_is_not_exported_as_hf(
    tiny_of, tmp_path, widths, bias, names
):
    """The config keeps the width from before the cut when the MLPs have several."""
    loaded = cut_model(tiny_of("llama"), widths, bias=bias)
    write(loaded, variant_plan(loaded, 0), tmp_path / "native")
    with pytest.raises(UnsupportedError, match=f"{len(names)} MLPs .*: {', '.join(names)}"):
        export_model(tmp_path / "native", tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()


def test_one_width_and_no_bias_loads_in_plain_transformers(tiny_model, tmp_path):
    loaded = cut_model(tiny_model, (64, 64), bias=False)
    write(loaded, variant_plan(loaded, 2), tmp_path / "native")
    report = export_model(tmp_path / "native", tmp_path / "out", format="hf")
    assert report.kl_nats < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert [shape.width for shape in mlp_shapes(plain).values()] == [64, 64]


def test_shapes_that_do_not_fit_are_reported(tiny_of, tmp_path):
    loaded = cut_model(tiny_of("llama"), (128, 64), bias=True)
    write(loaded, variant_plan(loaded, 0), tmp_path / "native")
    path = tmp_path / "native" / "config.json"
    config = json.loads(path.read_text())
    shapes = config["quantization_config"]["mlp_shapes"]
    shapes["model.layers.0.mlp"]["width"] = 96
    path.write_text(json.dumps(config))
    with pytest.raises(StoreError, match="does not belong"):
        autocomp.load(tmp_path / "native")
    shapes["model.layers.7.mlp"] = {"width": 64, "bias": False}
    path.write_text(json.dumps(config))
    with pytest.raises(StoreError, match=r"layers\.7\.mlp"):
        autocomp.load(tmp_path / "native")
