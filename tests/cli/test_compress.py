"""``autocomp compress`` around a fake compressor."""

import json

import pytest

from autocomp.cli.compress import uniform_token
from autocomp.core.errors import ConfigError
from autocomp.core.spec import LayerSpec


@pytest.mark.parametrize(
    ("arguments", "token"),
    [
        (("gptq", 4, 64), "gptq-w4g64"),
        (("rtn", 8, 0), "rtn-w8"),
        (("gptq", 3, None), "gptq-w3g64"),
        (("spqr", 3, None), "spqr-w3"),
        (("spqr", 3, 32), "spqr-w3g32"),
        (("squeezellm", 3, 64), "squeezellm-w3"),
        (("lutgemm", 3, 64), "lutgemm-w3g64"),
        (("nf", 4, 64), "nf-w4"),
        (("zqfp", 4, 256), "zqfp-w4g256"),
        (("owq", 3, None), "owq-w3g64-t3.05"),
        (("owq", 8, 0), "owq-w8-t8.05"),
        (("awq", 4, 32), "awq+rtn-w4g32-clip"),
        (("actorder", 3, None), "actorder+gptq-w3g64"),
        (("rotation", 2, None), "rotation-hadamard+gptq-w2g64"),
        (("quip", 2, None), "rotation-orthogonal-rescaled+quip-w2-p1-orthogonal"),
        (("magnitude-2:4+rtn-w4g64", 4, 64), "magnitude-2:4+rtn-w4g64"),
    ],
)
def test_uniform_token(arguments, token):
    assert uniform_token(*arguments) == token
    assert LayerSpec.parse(token).token() == token


def test_uniform_token_refuses_what_is_no_quantizer():
    for method in ("wanda", "asvd", "laser", "lplr", "lorc", "absmax", "fpabsmax"):
        with pytest.raises(ConfigError, match="whole token"):
            uniform_token(method, 4, 64)
    with pytest.raises(ConfigError, match="Did you mean 'gptq'"):
        uniform_token("gptqq", 4, 64)


@pytest.fixture
def asked(monkeypatch):
    seen = []

    def compress_uniform(config, *, linear, embedding, out, progress):
        seen.append((config.model, config.data.corpus, linear, embedding))
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"x" * 2_000_000)
        return out

    monkeypatch.setattr("autocomp.search.run.compress_uniform", compress_uniform)
    return seen


def test_compress(run, tmp_path, asked):
    out = tmp_path / "q4"
    answer = run("compress", "tiny", "--method", "gptq", "--bits", 3, "--out", out, "--json")
    assert answer.code == 0
    assert asked == [("tiny", "pydoc", "gptq-w3g64", "rtn-w8g64")]
    assert json.loads(answer.out)["weight_bytes"] == 2_000_000


def test_calibration_text(run, tmp_path, monkeypatch):
    seen = []

    def compress_uniform(config, **others):
        seen.append((config.data.corpus, config.data.calibration))
        others["out"].mkdir()

    monkeypatch.setattr("autocomp.search.run.compress_uniform", compress_uniform)
    for text in ("corpus", "mix:selfgen-t1"):
        answer = run("compress", "tiny", "--calibration", text, "--out", tmp_path / text)
        assert answer.code == 0
    assert seen == [("pydoc", "corpus"), ("pydoc", "mix:selfgen-t1")]
    assert run("compress", "tiny", "--calibration", "selfgn", "--out", tmp_path / "x").code == 2


def test_dense_embedding(run, tmp_path, asked):
    answer = run("compress", "tiny", "--embedding", "dense", "--out", tmp_path / "q")
    assert asked[0][3] is None
    assert "2.00 MB" in answer.out


def test_a_folder_that_is_not_empty_is_kept(run, tmp_path, asked):
    (tmp_path / "mine.txt").write_text("mine")
    answer = run("compress", "tiny", "--out", tmp_path)
    assert answer.code == 1
    assert asked == []
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_limit_that_the_result_would_break_is_refused_before_work(
    run, tmp_path, tiny_llama_path
):
    out, limit = tmp_path / "q4", ("--max-prefill-ms", "1e-6", "--cost-device", "m1")
    answer = run("compress", tiny_llama_path, "--group-size", 16, "--out", out, *limit)
    assert answer.code == 3
    assert "ms (modelled), more than --max-prefill-ms 1e-06 ms" in answer.err
    assert not out.exists()
