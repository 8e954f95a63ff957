"""``autocomp generate`` on a tiny random model."""

import json

from autocomp.layers.native import is_native


def test_greedy_text_is_repeatable(run, tiny_llama_path):
    arguments = ("generate", tiny_llama_path, "a list is", "--max-new-tokens", 5, "--json")
    first, second = run(*arguments), run(*arguments)
    assert first.code == 0
    data = json.loads(first.out)
    assert 1 <= data["tokens"] <= 5
    assert data["prompt"] == "a list is"
    assert first.out == second.out


def test_sampling_follows_the_seed(run, tiny_llama_path):
    def sample(seed):
        answer = run(
            "generate", tiny_llama_path, "x", "--temperature", 2, "--seed", seed,
            "--max-new-tokens", 12, "--json",
        )  # fmt: skip
        return json.loads(answer.out)["text"]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_text_streams_to_standard_output(run, tiny_llama_path):
    answer = run("generate", tiny_llama_path, "a list is", "--max-new-tokens", 2)
    assert answer.code == 0
    assert answer.out.startswith("a list is")
    assert "loading" in answer.err


def test_chat_needs_a_template(run, tiny_llama_path):
    answer = run("generate", tiny_llama_path, "hello", "--chat")
    assert answer.code == 2
    assert "no chat template" in answer.err


def test_native_folders_are_recognised(tmp_path, tiny_llama_path):
    assert not is_native(str(tiny_llama_path))
    assert not is_native("some/hub-id")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "autocomp"}}')
    assert is_native(str(tmp_path))


def test_an_unknown_model_exits_with_2(run, tmp_path):
    assert run("generate", tmp_path / "nowhere", "hello").code == 2
