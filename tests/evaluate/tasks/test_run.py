import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import autocomp
from autocomp.core.errors import ConfigError
from autocomp.core.plan import Plan
from autocomp.core.spec import LayerSpec
from autocomp.evaluate.record import Measurement
from autocomp.evaluate.tasks import TASKS, evaluate_tasks, write_tasks
from autocomp.layers import Candidate, write_native
from autocomp.testing.plans import compress_plan

COMPARED = ("lambada_openai", "arc_challenge", "winogrande", "wikitext")


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self):
        self.stages, self.amounts, self.summaries = [], [], []

    def start(self, stage, total=None, unit=""):
        self.stages.append((stage, unit))
        self.amounts.append(0)

    def advance(self, amount=1, note=""):
        self.amounts[-1] += amount

    def finish(self, summary=""):
        self.summaries.append(summary)

    def log(self, text):
        raise AssertionError(text)


@pytest.mark.slow
def test_equals_lm_evals_own_command_line(
    trained, trained_llama_path, data_dir, tmp_path, monkeypatch
):
    """Same dtype, one request a pass: the same numbers, standard errors included."""
    write_tasks(data_dir, tmp_path / "tasks", COMPARED)
    arguments = {
        "model": "hf",
        "model_args": f"pretrained={trained_llama_path},dtype=float32",
        "tasks": ",".join(COMPARED),
        "include_path": tmp_path / "tasks",
        "limit": 10,
        "batch_size": 1,
        "device": "cpu",
        "output_path": tmp_path / "results.json",
    }
    command = [f"--{name}={value}" for name, value in arguments.items()]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "lm_eval", *command], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = tmp_path.glob("results*.json")
    theirs = json.loads(written.read_text())["results"]
    ours = evaluate_tasks(trained.model, trained.tokenizer, COMPARED, data_dir=data_dir, limit=10)
    for name, found in zip(COMPARED, ours, strict=True):
        assert (found.data.name, found.data.units) == (name, 10)
        expected = {
            key.removesuffix(",none"): value
            for key, value in theirs[name].items()
            if key.endswith(",none")
        }
        mine = {metric: value.value for metric, value in found.metrics.items()}
        errors = {
            f"{metric}_stderr": "N/A" if value.standard_error is None else value.standard_error
            for metric, value in found.metrics.items()
        }
        assert mine | errors == expected


def test_a_record_says_what_was_read(trained, data_dir):
    heard = Heard()
    names = ("piqa", "boolq")
    found = evaluate_tasks(
        trained.model, trained.tokenizer, names, data_dir=data_dir, progress=heard
    )
    assert heard.stages == [("piqa", "tokens"), ("boolq", "tokens")]
    assert heard.amounts == [record.data.tokens for record in found]
    assert heard.summaries[1].startswith("acc 0.")
    for record in found:
        assert record.data.units == 12
        assert (record.dtype, record.device) == ("float32", "cpu")
        assert "lm_eval" in record.versions
        assert Measurement.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert [record.data.split for record in found] == ["validation", "validation"]
    assert set(found[0].metrics) == {"acc", "acc_norm"}
    # one byte a token, so a pass reads prompt and choice but for the last byte
    rows = [f"Question: {text}\nAnswer: " for text in _goals(data_dir)]
    solutions = [("Take " + goal.split()[1] + ".", "Wait.") for goal in _goals(data_dir)]
    expected = sum(
        len(row) + len(solution) - 1
        for row, pair in zip(rows, solutions, strict=True)
        for solution in pair
    )
    assert found[0].data.tokens == expected


def _goals(data_dir):
    lines = (data_dir / "piqa/valid.jsonl").read_text().splitlines()
    return [json.loads(line)["goal"] for line in lines]


def test_the_digest_is_of_the_examples(trained, data_dir, lines, tmp_path):
    def digest(folder, **options):
        (found,) = evaluate_tasks(
            trained.model, trained.tokenizer, "piqa", data_dir=folder, **options
        )
        return found.data.digest

    rows = [{"goal": f"g{i}", "sol1": "a", "sol2": "b", "label": 0} for i in range(3)]
    lines(tmp_path / "piqa/valid.jsonl", rows)
    first = digest(tmp_path)
    assert digest(tmp_path, batch_size=2) == first
    assert digest(tmp_path, limit=2) != first
    lines(tmp_path / "piqa/valid.jsonl", [*rows[:2], rows[2] | {"sol2": "c"}])
    assert digest(tmp_path) != first


def test_packed_models_and_live_candidates_give_what_they_give_dense(trained, data_dir, tmp_path):
    """A native folder, its tied table packed too, and the candidate of the same plan."""
    sketch = trained.sketch
    tokens = {"linear": "rtn-w4g64", "embedding": "rtn-w8", "subblock": "dense"}
    layers = {
        site.name: LayerSpec.parse(tokens[site.kind])
        for site in sketch.sites
        if site.kind in tokens
    }
    caches = {site.name: LayerSpec.parse("kivi-k2v2g4r8") for site in sketch.caches()}
    bypass = {next(sketch.subblocks()).name: LayerSpec.parse("bypass")}
    candidate = Candidate(trained.model, sketch)
    seen: list[float] = []
    for extra in ({}, caches, bypass):
        plan = Plan(layers | extra)
        candidate.restore()
        weights = compress_plan(trained.model, sketch, plan)
        folder = tmp_path / f"native{len(seen)}"
        write_native(
            folder, plan=plan, sketch=sketch, weights=weights, model=trained.model,
            tokenizer=trained.tokenizer,
        )  # fmt: skip
        candidate.apply(plan, lambda site, spec, held=weights: held[site].operands())
        packed, live = (
            evaluate_tasks(model, trained.tokenizer, "lambada_openai", data_dir=data_dir, limit=6)[
                0
            ]
            for model in (autocomp.load(folder, dtype=torch.float32), trained.model)
        )
        assert (packed.data, packed.metrics) == (live.data, live.metrics)
        seen.append(live.metrics["perplexity"].value)
    assert len(set(seen)) == 3


def test_larger_batches_change_no_more_than_rounding(trained, data_dir):
    one, four = (
        evaluate_tasks(
            trained.model, trained.tokenizer, "lambada_openai", data_dir=data_dir, batch_size=size
        )[0]
        for size in (1, 4)
    )
    assert four.data.tokens > one.data.tokens  # padding goes through the model
    assert replace(four.data, tokens=0) == replace(one.data, tokens=0)
    expected = one.metrics["perplexity"].value
    assert four.metrics["perplexity"].value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ("piqqa", {}, "Did you mean 'piqa'"),
        ("piqa", {"limit": 0}, "a limit of 0 examples"),
        ("piqa", {"batch_size": 0}, "batch_size is 0"),
        ("piqa", {"data_dir": "no-such-folder"}, "no-such-folder is no folder"),
    ],
)
def test_bad_settings_are_refused(trained, tasks, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_tasks(trained.model, trained.tokenizer, tasks, **options)


@pytest.mark.parametrize("name", list(TASKS))
def test_without_a_folder_the_hub_is_asked(trained, name):
    """The tests are offline, so asking is an error that names the task and what to do."""
    with pytest.raises(ConfigError, match=f"the data of {name} cannot be loaded.*--data-dir"):
        evaluate_tasks(trained.model, trained.tokenizer, name)


def test_local_files_need_no_network(trained, data_dir, monkeypatch):
    """Even where the hub may be asked."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    found = evaluate_tasks(
        trained.model, trained.tokenizer, "hellaswag", data_dir=data_dir, limit=2
    )
    assert found[0].data.units == 2
    assert not asked
