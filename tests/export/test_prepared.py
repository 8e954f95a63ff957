"""Exports of plans that change or round the inputs of linears."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import autocomp
from autocomp.core.errors import UnsupportedError
from autocomp.core.plan import Plan
from autocomp.core.registry import load_object
from autocomp.core.spec import DENSE, LayerSpec
from autocomp.core.stats import Stats
from autocomp.export import export_model
from autocomp.layers import write_native
from autocomp.models import load
from autocomp.models.tiny import tiny
from autocomp.models.weights import get_weight

TOKENS = torch.arange(3, 35).reshape(1, 32)


@pytest.fixture
def artefact_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a native folder in which linears take turns among some specs."""

    def artefact(family: str, *tokens: str) -> Path:
        loaded = load(str(tiny(family, tmp_path / "dense")), dtype=torch.float32)
        weights, layers = {}, {}
        for index, site in enumerate(loaded.sketch.weights()):
            token = tokens[index % len(tokens)] if site.kind == "linear" else "dense"
            layers[site.name] = LayerSpec.parse(token)
            weight = get_weight(loaded.model, site.name).float()
            absmax = torch.linspace(0.5, 8, weight.shape[1])
            weights[site.name] = load_object("autocomp.methods.compose:compress")(
                weight, layers[site.name], Stats(absmax=absmax), loaded.sketch.dtype
            )
        plan = Plan({site.name: DENSE for site in loaded.sketch.sites} | layers)
        write_native(
            tmp_path / "native",
            plan=plan,
            sketch=loaded.sketch,
            weights=weights,
            model=loaded.model,
            tokenizer=loaded.tokenizer,
        )
        return tmp_path / "native"

    return artefact


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scales_and_rotations_are_merged_into_dense_weights(
    artefact_of: Callable[..., Path], family: str, tmp_path: Path
) -> None:
    artefact = artefact_of(
        family, "smoothquant+rtn-w4g16", "rotation-hadamard+rtn-w8", "rtn-w4g16"
    )
    report = export_model(artefact, tmp_path / "out", format="hf")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    expected = autocomp.load(artefact, dtype=torch.float32)(TOKENS).logits
    # merged weights are rounded to 11 significant bits: a relative error below 2^-11 each
    assert (plain(TOKENS).logits - expected).norm() < 2**-8 * expected.norm()
    assert 0 <= report.kl_nats < 1e-3


def test_rounded_inputs_have_no_dense_form(
    artefact_of: Callable[..., Path], tmp_path: Path
) -> None:
    artefact = artefact_of("llama", "rtn-w4g16", "rtn-w8-sym+absmax-a8-tensor")
    with pytest.raises(UnsupportedError, match=r"layers\.0\.\S+ \(rtn-w8-sym\+absmax-a8-tensor\)"):
        export_model(artefact, tmp_path / "out", format="hf")
    assert not (tmp_path / "out").exists()
    export_model(artefact, tmp_path / "out")
    expected = autocomp.load(artefact, dtype=torch.float32)(TOKENS).logits
    found = autocomp.load(tmp_path / "out", dtype=torch.float32)(TOKENS).logits
    assert torch.equal(found, expected)
