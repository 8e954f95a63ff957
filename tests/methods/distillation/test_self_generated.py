"""Self-generated text: starts, greedy lengths and tokens, with a toy teacher."""

import pytest
import torch

from autocomp.core.errors import PlanError
from autocomp.methods.distillation.self_generated import SelfGenerated, SelfGeneratedSpec
from autocomp.testing.recipes import ToyTeacher


class Listener(ToyTeacher):
    """A teacher that remembers what it was asked."""

    def sample(self, starts, greedy, temperature, seed):
        self.asked = starts, greedy, temperature, seed
        return super().sample(starts, greedy, temperature, seed)


def asked(index, seed=0, size=40):
    teacher = Listener(size=size)
    SelfGenerated().call(SelfGeneratedSpec(0.7), teacher, index, seed)
    return teacher.asked


@pytest.mark.parametrize(
    ("temperature", "token"), [(1, "selfgen-t1"), (0.7, "selfgen-t0.7"), (0.001, "selfgen-t0.001")]
)
def test_tokens(temperature, token):
    assert SelfGeneratedSpec(temperature).token() == token
    assert SelfGeneratedSpec.parse(token) == SelfGeneratedSpec(temperature)
    assert SelfGeneratedSpec.parse("selfgen-t1.0").token() == "selfgen-t1"


@pytest.mark.parametrize("temperature", [0, -1, 1e-4, float("inf"), float("nan")])
def test_temperatures_that_draw_nothing_are_refused(temperature):
    with pytest.raises(PlanError, match=r"must lie in \[0.001"):
        SelfGeneratedSpec(temperature)


@pytest.mark.parametrize("size", [40, 41, 42])
def test_every_start_meets_every_greedy_length_once(size):
    """3 V pairs in the first 3 V sequences, whatever V leaves modulo 3."""
    calls = [asked(index, size=size) for index in range(-(-3 * size // 32))]
    starts = torch.cat([starts for starts, *_ in calls])[: 3 * size].tolist()
    greedy = torch.cat([greedy for _, greedy, *_ in calls])[: 3 * size].tolist()
    assert set(zip(starts, greedy, strict=True)) == {
        (token, length) for token in range(3, 3 + size) for length in (3, 4, 5)
    }
    assert sorted(starts[:size]) == list(range(3, 3 + size))
    assert starts[:size] != sorted(starts[:size])
    assert greedy[:6] == [3, 4, 5, 3, 4, 5]


def test_seeds_choose_order_and_draws():
    starts, _, temperature, draws = asked(0)
    other_starts, _, _, other_draws = asked(0, seed=1)
    assert temperature == 0.7
    assert starts.tolist() != other_starts.tolist()
    assert draws not in (other_draws, asked(1)[3])


def test_the_prefix_is_greedy_and_the_rest_is_drawn():
    teacher = Listener(length=30)
    ids = SelfGenerated().call(SelfGeneratedSpec(1.0), teacher, 0, 0)
    best = teacher.vocabulary[teacher.logits[ids[:, :-1]].argmax(dim=-1)]
    position = torch.arange(1, 30)
    in_prefix = position < teacher.asked[1][:, None]
    assert bool((ids[:, 1:] == best)[in_prefix].all())
    share = torch.softmax(teacher.logits[ids[:, :-1]], dim=-1).amax(dim=-1)[~in_prefix]
    hits = (ids[:, 1:] == best)[~in_prefix].float()
    # Beyond the prefix a hit has the probability of the best token: 4 standard errors.
    assert abs(hits.mean() - share.mean()) < 4 * (share * (1 - share)).sum().sqrt() / len(share)
