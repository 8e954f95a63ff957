import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

import autocomp
from autocomp.core.errors import ConfigError, ExportError, StoreError
from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.cost import weight_bytes
from autocomp.export import export_model
from autocomp.export import model as model_module
from autocomp.layers import write_native
from autocomp.layers.native import WEIGHTS_FILE
from autocomp.models import load
from autocomp.models.tiny import FAMILIES, tiny
from autocomp.testing.plans import compress_plan, random_plan

TOKENS = torch.arange(3, 35).reshape(1, 32)


@pytest.fixture(scope="session")
def artefact_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a native folder of a family with packed, dense and bypassed sites; written once."""
    folders: dict[str, Path] = {}

    def artefact(family: str) -> Path:
        if family not in folders:
            folder = tmp_path_factory.mktemp("artefact") / family
            loaded = load(str(tiny(family, folder / "dense")), dtype=torch.float32)
            first, *_, last = loaded.sketch.subblocks()
            gone = dict.fromkeys((first.name, last.name), LayerSpec.parse("bypass"))
            plan = Plan(dict(random_plan(loaded.sketch, 1, bypass=0.0).layers) | gone)
            write_native(
                folder / "native",
                plan=plan,
                sketch=loaded.sketch,
                weights=compress_plan(loaded.model, loaded.sketch, plan),
                model=loaded.model,
                tokenizer=loaded.tokenizer,
                extra={"model": "org/tiny", "heldout": {"kl_nats": 0.5, "corpus": "pydoc"}},
            )
            assert weight_bytes(loaded.sketch, plan) == _size(folder / "native")
            folders[family] = folder / "native"
        return folders[family]

    return artefact


def _size(folder: Path) -> int:
    return (folder / WEIGHTS_FILE).stat().st_size


@pytest.mark.parametrize("family", FAMILIES)
def test_hf_loads_in_plain_transformers(
    family: str, artefact_of: Callable[[str], Path], tmp_path: Path
) -> None:
    report = export_model(artefact_of(family), tmp_path / "out", format="hf")
    plain, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    packed = autocomp.load(artefact_of(family), dtype=torch.float32)
    expected, found = packed(TOKENS).logits, plain(TOKENS).logits
    # decoded weights are rounded to 11 significant bits: a relative error below 2^-11 each
    assert (found - expected).norm() < 2**-8 * expected.norm()
    assert 0 <= report.kl_nats < 1e-3
    assert report.weight_bytes == _size(tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("hello").input_ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_native_is_the_artefact(
    family: str, artefact_of: Callable[[str], Path], tmp_path: Path
) -> None:
    artefact = artefact_of(family)
    report = export_model(artefact, tmp_path / "out")
    assert report.kl_nats == 0
    assert report.weight_bytes == _size(artefact)
    found = autocomp.load(tmp_path / "out", dtype=torch.float32)(TOKENS).logits
    assert torch.equal(found, autocomp.load(artefact, dtype=torch.float32)(TOKENS).logits)


@pytest.mark.parametrize("format", ["native", "hf"])
def test_card_and_plan(format: str, artefact_of: Callable[[str], Path], tmp_path: Path) -> None:
    artefact = artefact_of("llama")
    export_model(artefact, tmp_path / "out", format=format)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "org/tiny"
    assert "autocomp" in card.data.tags
    assert "| heldout.kl_nats | 0.5 |" in card.text
    assert ("saves no bytes" in card.text) == (format == "hf")
    plan = Plan.from_json(json.loads((tmp_path / "out" / "plan.json").read_text()))
    assert plan.digest == Plan.from_json(json.loads((artefact / "plan.json").read_text())).digest
    assert "`bypass`" in card.text


def test_card_names_the_hub_model_of_the_reference(
    artefact_of: Callable[[str], Path], tmp_path: Path
) -> None:
    export_model(artefact_of("llama"), tmp_path / "out", base_model="smollm2-135m")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_occupied_folder_needs_force(artefact_of: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ExportError, match="--force"):
        export_model(artefact_of("llama"), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    export_model(artefact_of("llama"), tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mine").exists()


@pytest.mark.parametrize("format", ["native", "hf"])
def test_a_wrong_export_is_not_kept(
    format: str,
    artefact_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = model_module._logits
    seen = []
    right = 1 if format == "native" else 2

    def drifting(model: object) -> torch.Tensor:
        seen.append(model)
        return honest(model) * (1.0 if len(seen) <= right else 1.01)

    monkeypatch.setattr(model_module, "_logits", drifting)
    with pytest.raises(ExportError, match="mean KL"):
        export_model(artefact_of("llama"), tmp_path / "out", format=format)
    assert not list(tmp_path.iterdir())


def test_refusals(artefact_of: Callable[[str], Path], tmp_path: Path) -> None:
    artefact = artefact_of("llama")
    with pytest.raises(ConfigError, match="native"):
        export_model(artefact, tmp_path / "out", format="nativ")
    with pytest.raises(ConfigError, match=r"plan\.json"):
        export_model(tmp_path, tmp_path / "out")
    for place in (artefact, artefact.parent):
        with pytest.raises(ExportError, match="artefact"):
            export_model(artefact, place, force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        export_model(artefact, tmp_path / "file" / "out")
