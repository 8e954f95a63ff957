"""The main job through the command line, nothing faked: search, front, show, export, eval."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from autocomp.cli.main import app

SETTINGS = (
    "data.window=64",
    "data.calibration_tokens=512",
    "data.rungs=[128, 512]",
    "data.heldout_tokens=512",
    "search.finalists=1",
    "search.baselines=2",
    "search.ladder=2",
)


def autocomp(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        app(list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def study(trained_llama_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study directory made by `autocomp search`."""
    folder = tmp_path_factory.mktemp("job") / "study"
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    with pytest.raises(SystemExit) as stop:
        app(
            [
                "search",
                str(trained_llama_path),
                "--max-bytes",
                "45kB",
                "--trials",
                "10",
                "--json",
                "--study-dir",
                str(folder),
                "-q",
                *settings,
            ]
        )
    assert not stop.value.code
    return folder


def test_front_as_table_picture_and_page(study, tmp_path, capsys):
    code, out, _ = autocomp(
        capsys, "front", str(study), "--plot", str(tmp_path / "f.png"),
        "--html", str(tmp_path / "f.html"),
    )  # fmt: skip
    assert code == 0
    assert "held-out" in out
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "f.html").read_text()
    assert "plotly" in page.lower()
    assert 'src="http' not in page
    numbers = json.loads((tmp_path / "f.json").read_text())
    assert numbers


def test_json_front_names_best_and_uniform(study, capsys):
    code, out, _ = autocomp(capsys, "front", str(study), "--json")
    assert code == 0
    assert json.loads(out)


@pytest.mark.parametrize("form", ["native", "hf"])
def test_export_reload_eval_generate(study, tmp_path, capsys, form, trained_llama_path):
    target = tmp_path / form
    code, out, err = autocomp(
        capsys, "export", str(study), "--best", "--format", form, "--out", str(target), "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    if form == "native":
        assert (target / "model.safetensors").stat().st_size == report["weight_bytes"]
        assert report["weight_bytes"] <= 45_000
    else:
        AutoModelForCausalLM.from_pretrained(target)
    assert AutoTokenizer.from_pretrained(target)
    assert (target / "README.md").is_file()
    assert (target / "plan.json").is_file()
    code, out, err = autocomp(
        capsys, "eval", str(target), "--base", str(trained_llama_path), "--tokens", "512",
        "--window", "64", "--json",
    )  # fmt: skip
    assert code == 0, err
    (measured,) = json.loads(out)["measurements"]
    assert measured["data"]["window"] == 64
    assert measured["data"]["name"] == "pydoc"
    assert measured["metrics"]["kl_nats"]["value"] == pytest.approx(
        report["finished"]["heldout_kl_nats"],
        rel=1e-3 if form == "native" else 0.02,
    )
    code, out, _ = autocomp(
        capsys, "generate", str(target), "def", "--max-new-tokens", "4", "--json"
    )
    assert code == 0
    code, _, err = autocomp(
        capsys, "export", str(study), "--best", "--format", form, "--out", str(target)
    )
    assert code == 1
    assert "--force" in err


def test_show_says_what_every_byte_buys(study, capsys):
    code, out, err = autocomp(capsys, "show", str(study), "--trial", "0", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert any(row["alternatives"] for row in rows)


def test_compress_without_a_search(trained_llama_path, tmp_path, capsys):
    code, _, err = autocomp(
        capsys, "compress", str(trained_llama_path), "--method", "rtn", "--bits", "8",
        "--group-size", "64", "--out", str(tmp_path / "q8"), "--json",
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "q8" / "model.safetensors").is_file()


def test_recover_then_export_takes_the_trained_model(study, tmp_path, capsys):
    code, out, err = autocomp(
        capsys, "recover", str(study), "--best", "--method", "lora-r2-20-b2", "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    before, after = found["before"], found["after"]
    assert after["heldout_kl_nats"] < before["heldout_kl_nats"]
    assert after["weight_bytes"] == before["weight_bytes"]
    code, out, _ = autocomp(capsys, "front", str(study))
    assert code == 0
    assert "lora-r2-20-b2" in out
    code, out, err = autocomp(
        capsys, "export", str(study), "--trial", str(found["trial"]), "--out", str(tmp_path / "x")
    )
    assert code == 0, err
    assert "trained by lora-r2-20-b2" in out
    assert json.loads((tmp_path / "x" / "plan.json").read_text())["recovery"] == "lora-r2-20-b2"
