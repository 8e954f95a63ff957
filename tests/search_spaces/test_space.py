"""Default options, given options, and what is refused."""

import logging

import pytest

from autocomp.core.errors import ConfigError, PlanError, UnsupportedError
from autocomp.core.registry import SPACES
from autocomp.core.spec import DENSE
from autocomp.testing.spaces import toy_sketch

QUERY = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"


def tokens(options):
    return [spec.token() for spec in options]


def test_options_are_ordered_by_stored_bytes():
    lists = SPACES["bits"].candidates(
        toy_sketch(), linear=("dense", "gptq-w8g64", "gptq-w2g64", "gptq-w4g32", "gptq-w4g64")
    )
    expected = ["gptq-w2g64", "gptq-w4g64", "gptq-w4g32", "gptq-w8g64", "dense"]
    assert tokens(lists[QUERY]) == expected


def test_joint_space_holds_every_family():
    lists = SPACES["joint"].candidates(toy_sketch())
    linear = " ".join(tokens(lists[QUERY]))
    for method in ("gptq", "sparsegpt", "wanda", "wsvd", "dense"):
        assert method in linear
    assert tokens(lists["model.layers.1.mlp"]) == ["dense", "bypass"]
    embedding = tokens(lists["model.embed_tokens"])
    assert {token.partition("-")[0] for token in embedding} == {"rtn", "gptq", "dense"}


def test_untied_head_takes_the_embedding_options():
    lists = SPACES["joint"].candidates(toy_sketch(tied=False), embedding=("rtn-w4g64", "dense"))
    assert tokens(lists["lm_head"]) == tokens(lists["model.embed_tokens"])
    assert tokens(lists["lm_head"]) == ["rtn-w4g64", "dense"]


def test_bypass_can_be_switched_either_way():
    sketch = toy_sketch()
    assert "model.layers.0.mlp" not in SPACES["joint"].candidates(sketch, bypass=False)
    assert "model.layers.0.mlp" in SPACES["bits"].candidates(sketch, bypass=True)


@pytest.mark.parametrize(
    ("hidden", "size"), [(64, "g64"), (96, "g32"), (48, "g16"), (24, "g8"), (36, "")]
)
def test_default_group_size_adapts_to_the_layer(hidden, size):
    lists = SPACES["bits"].candidates(toy_sketch(hidden=hidden))
    assert tokens(lists[QUERY])[0] == f"gptq-w2{size}"
    assert len(set(tokens(lists[QUERY]))) == len(lists[QUERY])


def test_group_of_sites_gets_a_group_size_that_divides_them_all():
    lists = SPACES["bits"].candidates(toy_sketch(hidden=96, fused=True))
    assert "gptq-w4g32" in tokens(lists[QUERY])
    assert "gptq-w4g64" not in tokens(lists[QUERY])


def test_default_that_cannot_fit_is_left_out_loudly(caplog):
    with caplog.at_level(logging.WARNING):
        lists = SPACES["sparsity"].candidates(toy_sketch(hidden=34))
    assert "wanda-2:4" not in tokens(lists[QUERY])
    assert "wanda-s50" in tokens(lists[QUERY])
    assert f"wanda-2:4 left out for {QUERY}" in caplog.text


def test_given_group_size_is_never_changed():
    with pytest.raises(PlanError, match=r"'gptq-w4g64'.*model\.layers\.0\.self_attn.*96") as error:
        SPACES["joint"].candidates(toy_sketch(hidden=96), linear=("gptq-w4g64",))
    assert "32" in str(error.value), "the message says what is allowed"


def test_given_method_must_suit_the_site():
    with pytest.raises(UnsupportedError, match=r"wanda-s50.*model\.embed_tokens"):
        SPACES["joint"].candidates(toy_sketch(), embedding=("wanda-s50",))
    with pytest.raises(UnsupportedError, match="bypass"):
        SPACES["joint"].candidates(toy_sketch(), linear=("bypass",))


@pytest.mark.parametrize(
    ("linear", "error", "message"),
    [
        ((), ConfigError, "linear options is empty"),
        (("gtpq-w4",), ConfigError, "gptq"),
        (("gptq-w7",), PlanError, "bits"),
    ],
)
def test_bad_lists(linear, error, message):
    with pytest.raises(error, match=message):
        SPACES["joint"].candidates(toy_sketch(), linear=linear)


def test_repeated_options_count_once():
    lists = SPACES["bits"].candidates(toy_sketch(), linear=("dense", "gptq-w4g64", "dense"))
    assert tokens(lists[DOWN]) == ["gptq-w4g64", "dense"]
    assert lists[DOWN][-1] == DENSE
