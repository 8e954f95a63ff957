"""What a study holds beside its trials."""

import pytest

from autocomp.core.errors import ConfigError
from autocomp.core.spec import LayerSpec
from autocomp.search.study import Study
from autocomp.testing.study import fake_space

SPACE = fake_space()


def opened(folder):
    return Study.open(None, folder, fingerprint={"seed": 0})


def test_lists_can_only_grow(tmp_path):
    study = opened(tmp_path)
    assert study.get_lists() == {}
    study.set_lists(SPACE.lists)
    assert opened(tmp_path).get_lists() == SPACE.lists
    name = "model.layers.0.mlp.up_proj"
    grown = SPACE.lists | {name: (*SPACE.lists[name], LayerSpec.parse("gptq-w6g64"))}
    study.set_lists(grown)
    assert study.get_lists() == grown
    for wrong in (SPACE.lists[name], SPACE.lists[name][::-1], ()):
        with pytest.raises(ConfigError, match="appended"):
            study.set_lists(grown | {name: wrong})
    assert study.get_lists() == grown


def test_tokens_count_once_however_often_a_pass_is_repeated(tmp_path):
    study = opened(tmp_path)
    for _ in range(2):
        study.set_tokens("calibration", "base", 512)
        study.set_tokens("calibration", "flap-p80", 512)
        study.set_tokens("reference", "heldout", 64)
    assert study.get_tokens() == {"calibration": 1024, "reference": 64}


def test_a_bound_fact_cannot_change(tmp_path):
    study = opened(tmp_path)
    study.bind("model_digest", "aaaa", "the model")
    opened(tmp_path).bind("model_digest", "aaaa", "the model")
    with pytest.raises(
        ConfigError, match=r"another model digest: stored aaaa, now bbbb.*the model"
    ):
        study.bind("model_digest", "bbbb", "the model")
