"""Scales from the finish to the exported folder, on a tiny trained model."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from autocomp.config import StudyConfig, load_config
from autocomp.core.plan import Plan
from autocomp.core.progress import Silent
from autocomp.cost.bytes import weight_bytes
from autocomp.export import export_model
from autocomp.formats.base import within
from autocomp.formats.io import load as load_tensors
from autocomp.layers.native import load, native_sketch, read_plan
from autocomp.search.explain import show_trial
from autocomp.search.result import summarise
from autocomp.search.run import compress_uniform, run_search
from autocomp.search.study import Study

TOKENS = torch.arange(3, 60)[None]
TOKEN = "awq+rtn-w4g16"
FOLDED = "awq-folded+rtn-w4g16"


def config(model: Path, **changes: object) -> StudyConfig:
    settings = {
        "model": str(model),
        "data.window": 64,
        "data.calibration_tokens": 1024,
        "data.rungs": (128, 256),
        "data.heldout_tokens": 256,
    }
    return load_config(None, settings | changes)


def compressed(model: Path, out: Path) -> Path:
    return compress_uniform(
        config(model), linear=TOKEN, embedding="rtn-w8g16", out=out, progress=Silent()
    )


def size(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


@pytest.fixture(scope="module")
def artefact(trained_llama_path, tmp_path_factory):
    return compressed(trained_llama_path, tmp_path_factory.mktemp("folded") / "native")


@pytest.fixture(scope="module")
def unfolded(trained_llama_path, tmp_path_factory):
    """The same finish with every scale kept where it is."""

    def kept(_: object, plan: Plan, weights: Mapping) -> tuple:
        return plan, weights, {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autocomp.search.finish.folded", kept)
        return compressed(trained_llama_path, tmp_path_factory.mktemp("local") / "native")


def test_every_scale_moves_but_those_that_grouped_heads_disagree_on(artefact, unfolded):
    """Four query heads of width 16 read two value heads."""
    plan, tensors = read_plan(artefact), load_tensors(unfolded / "model.safetensors")[0]
    for block in ("model.layers.0", "model.layers.1"):
        inside = [*(f"self_attn.{role}_proj" for role in "qkv"), "mlp.gate_proj", "mlp.up_proj"]
        for name in (*inside, "mlp.down_proj"):
            assert plan[f"{block}.{name}"].token() == FOLDED
        output = f"{block}.self_attn.o_proj"
        first, second = tensors[f"{output}.input.scale"].view(2, 2, 16).unbind(dim=1)
        assert plan[output].token() == (FOLDED if torch.equal(first, second) else TOKEN)


def test_the_file_is_as_large_as_the_folded_plan_says(artefact, unfolded):
    sketch = native_sketch(artefact)
    assert size(artefact) == weight_bytes(sketch, read_plan(artefact))
    assert size(unfolded) == weight_bytes(sketch, read_plan(unfolded))
    vectors = 2 * 2 * (5 * 64 + 128)  # two blocks, two bytes a channel
    assert size(unfolded) - size(artefact) > vectors


def test_folding_changes_the_model_by_its_rounding(artefact, unfolded):
    """Six producers in a row, each rounded to 2⁻¹² of itself."""
    with torch.no_grad():
        local, folded = (
            load(folder, dtype=torch.float32)(TOKENS).logits for folder in (unfolded, artefact)
        )
    assert not torch.equal(local, folded)
    assert float((folded - local).norm() / local.norm()) < 6 * 2**-11


def test_readers_of_one_input_are_fitted_together(unfolded):
    tensors = load_tensors(unfolded / "model.safetensors")[0]
    for block in ("model.layers.0", "model.layers.1"):
        for readers in (
            [f"{block}.self_attn.{role}_proj" for role in "qkv"],
            [f"{block}.mlp.{role}_proj" for role in ("gate", "up")],
        ):
            first, *others = (within(tensors, f"{name}.input")["scale"] for name in readers)
            assert all(torch.equal(first, other) for other in others)
            assert first.unique().numel() > 1


def test_a_folded_artefact_exports_to_plain_transformers(artefact, tmp_path):
    report = export_model(artefact, tmp_path / "hf", format="hf")
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
        logits = [model(TOKENS).logits for model in (plain, load(artefact, dtype=torch.float32))]
    assert report.kl_nats < 1e-4
    assert float((logits[0] - logits[1]).norm() / logits[1].norm()) < 2**-8
    assert export_model(artefact, tmp_path / "native").weight_bytes == size(artefact)


def test_a_trial_keeps_its_own_plan(trained_llama_path, tmp_path):
    chosen = config(
        trained_llama_path,
        **{
            "space.linear": (TOKEN, "awq+gptq-w3g16-clip", "smoothquant+rtn-w8g16-sym+absmax-a8"),
            "space.embedding": ("rtn-w8g16",),
            "space.bypass": False,
            "budget.max_bytes": 70_000,
            "search.trials": 5,
            "search.finalists": 1,
        },
    )
    result = run_search(chosen, study_dir=tmp_path, storage=None, progress=Silent())
    record = next(
        r for r in Study.open_existing(tmp_path).records() if r.number == result.best.number
    )
    plan = read_plan(tmp_path / result.best.artefact)
    tokens = {spec.token() for spec in plan.layers.values()}
    assert any("-folded+" in token for token in tokens)
    assert not any("-folded" in spec.token() for spec in record.plan.layers.values())
    assert result.best.weight_bytes == size(tmp_path / result.best.artefact) < record.weight_bytes
    assert summarise(Study.open_existing(tmp_path), tmp_path).best == result.best
    shown = {row.site: row.token for row in show_trial(tmp_path, None, record.number).rows}
    assert (
        shown["model.layers.0.mlp.down_proj"]
        == record.plan["model.layers.0.mlp.down_proj"].token()
    )
