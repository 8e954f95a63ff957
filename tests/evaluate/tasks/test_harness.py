import logging
import sys

import pytest
import torch
from tqdm import tqdm

from autocomp.core.errors import ConfigError
from autocomp.core.spec import LayerSpec
from autocomp.evaluate.tasks import harness
from autocomp.evaluate.tasks.harness import Forward, definition, language_model, quiet
from autocomp.evaluate.tasks.table import TASKS, Task
from autocomp.models.attention import compressing, decode_attention, set_cache_spec

IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.mark.parametrize("name", list(TASKS))
def test_lm_eval_defines_every_task_where_the_table_says(name):
    assert f"task: {name}\n" in definition(name).read_text()


def test_a_missing_lm_eval_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'autocomp\[eval\]'"):
        definition("piqa")


def test_another_lm_eval_is_one_clear_error(monkeypatch):
    moved = Task("moved/piqa.yaml", TASKS["piqa"].adapter, "validation", "acc")
    monkeypatch.setitem(harness.TASKS, "piqa", moved)
    with pytest.raises(ConfigError, match=r"defines piqa elsewhere than in .*moved/piqa\.yaml"):
        definition("piqa")


@torch.no_grad()
def test_tokens_are_counted_and_caches_count_as_in_decoding(trained):
    model, seen = trained.model, []
    plain = model(IDS, use_cache=False).logits
    forward = Forward(model, seen.append)
    assert torch.equal(forward(IDS).logits, plain)
    spec = LayerSpec.parse("kivi-k2v2g4r8").cache
    for layer in model.model.layers:
        set_cache_spec(layer.self_attn, spec)
    assert len(compressing(model)) == 2
    with decode_attention(model):
        decoded = model(IDS, use_cache=False).logits
    assert torch.equal(forward(IDS).logits, decoded)
    assert not torch.equal(decoded, plain)
    assert (forward.tokens, seen) == (80, [40, 40])


def test_the_tokenizer_is_left_alone(trained):
    trained.tokenizer.pad_token = None
    with quiet():
        adapted = language_model(Forward(trained.model), trained.tokenizer, 1)
    assert adapted.tokenizer.pad_token is not None
    assert trained.tokenizer.pad_token is None


def test_quiet_hides_bars_and_gives_back_what_it_changed(capsys):
    before, level = tqdm.__init__, logging.getLogger("lm_eval").level

    def fail():
        with quiet():
            print("hidden")
            list(tqdm(range(3), disable=False))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capsys.readouterr() == ("", "")
    assert tqdm.__init__ is before
    assert logging.getLogger("lm_eval").level == level
    list(tqdm(range(3)))
    assert "3/3" in capsys.readouterr().err
