import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, MixtralConfig, PretrainedConfig, Qwen3MoeConfig, T5Config

from autocomp.core.errors import ConfigError, NumericalError, UnsupportedError
from autocomp.models import load, sketch_of
from autocomp.models.tiny import FAMILIES, tiny


@pytest.fixture
def copy(tiny_llama_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama_path, tmp_path / "copy")


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("family", FAMILIES)
def test_sketch_from_config_equals_sketch_from_weights(tmp_path: Path, family: str) -> None:
    source = str(tiny(family, tmp_path / family))
    assert sketch_of(source) == load(source).sketch


def test_loaded_model_is_ready(tiny_llama_path: Path) -> None:
    loaded = load(str(tiny_llama_path))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer.decode(loaded.tokenizer("naïve").input_ids) == "naïve"
    assert (loaded.source, loaded.sketch.dtype) == (str(tiny_llama_path), "float16")


def test_dtype_changes_the_body_but_not_the_sketch(tiny_llama_path: Path) -> None:
    stored, half = (load(str(tiny_llama_path), dtype=dtype) for dtype in (None, torch.bfloat16))
    assert (stored.model.dtype, half.model.dtype) == (torch.float32, torch.bfloat16)
    assert (stored.sketch, stored.digest) == (half.sketch, half.digest)


def test_bfloat16_checkpoint_is_stored_in_bfloat16(copy: Path) -> None:
    edit_config(copy, dtype="bfloat16")
    assert sketch_of(str(copy)).dtype == "bfloat16"


def test_sketch_reads_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert len(sketch_of(str(copy)).sites) == 1 + 2 * 10
    with pytest.raises(ConfigError, match="cannot load"):
        load(str(copy))


def test_digest_follows_weights_and_config(copy: Path, tiny_llama_path: Path) -> None:
    original = load(str(tiny_llama_path)).digest
    edit_config(copy, transformers_version="0", _name_or_path="elsewhere")
    assert load(str(copy)).digest == original
    edit_config(copy, rms_norm_eps=1e-3)
    changed = load(str(copy)).digest
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert len({original, changed, load(str(copy)).digest}) == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_weights_are_named(copy: Path, value: float) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj\.weight holds 1 NaN"):
        load(str(copy))


def test_damaged_weights_are_a_clear_error(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot load"):
        load(str(copy))


def test_folder_without_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        load(str(copy))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (MixtralConfig(), "mixture of experts"),
        (Qwen3MoeConfig(), "mixture of experts"),
        (BertConfig(architectures=["BertForMaskedLM"]), "no causal language model"),
        (T5Config(), "no causal language model"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, config: PretrainedConfig, why: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=why):
        sketch_of(str(tmp_path))


def test_quantized_checkpoint_is_refused(copy: Path) -> None:
    edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedError, match="already quantized"):
        sketch_of(str(copy))


def test_remote_code_is_never_run(copy: Path) -> None:
    edit_config(copy, model_type="mystery", auto_map={"AutoConfig": "evil.Config"})
    (copy / "evil.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UnsupportedError, match="config of"):
        sketch_of(str(copy))


def test_unknown_names_are_answered_with_the_nearest(tiny_llama_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'smollm2-135m'\?.*HF_HUB_OFFLINE"):
        load("smollm-135m")
    with pytest.raises(ConfigError, match=f"Did you mean '{tiny_llama_path}'"):
        load(f"{tiny_llama_path}s")
    with pytest.raises(ConfigError, match=r"folder without config\.json"):
        load(str(tiny_llama_path.parent))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_absent_devices_are_refused(tiny_llama_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}'"):
        load(str(tiny_llama_path), device=device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_same_logits(tiny_llama_path: Path) -> None:
    ids = torch.arange(10, 40)[None]
    expected = load(str(tiny_llama_path)).model(ids).logits
    model = load(str(tiny_llama_path), device="cuda").model
    torch.testing.assert_close(model(ids.cuda()).logits.cpu(), expected, atol=1e-3, rtol=1e-3)
