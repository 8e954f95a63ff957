"""The local teacher against forward passes without a cache."""

from pathlib import Path

import pytest
import torch

from autocomp.core.method import Teacher
from autocomp.models import LoadedModel, load
from autocomp.models.teacher import ModelTeacher

CPU = torch.device("cpu")
LENGTH = 24
STARTS = torch.arange(40, 47)
GREEDY = torch.tensor([3, 4, 5, 3, 4, 5, LENGTH])


@pytest.fixture(params=["tiny_llama_path", "tiny_gpt2_path"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    path: Path = request.getfixturevalue(request.param)
    return load(str(path))


def sample(loaded: LoadedModel, batch_size: int | None = None, seed: int = 0, temperature=1.0):
    teacher = ModelTeacher(loaded, CPU, LENGTH, batch_size)
    return teacher.sample(STARTS, GREEDY, temperature, seed)


def test_it_is_a_teacher_of_text_tokens(loaded):
    teacher = ModelTeacher(loaded, CPU, LENGTH)
    assert isinstance(teacher, Teacher)
    assert teacher.vocabulary.tolist() == list(range(3, 259))  # not <pad>, <s>, </s> nor padding
    ids = sample(loaded)
    assert ids.shape == (len(STARTS), LENGTH)
    assert torch.equal(ids[:, 0], STARTS)
    assert bool(torch.isin(ids, teacher.vocabulary).all())


def test_same_seed_same_text(loaded):
    assert torch.equal(sample(loaded), sample(loaded))
    assert not torch.equal(sample(loaded), sample(loaded, seed=1))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_batches_may_be_split_anywhere(loaded, batch_size):
    assert torch.equal(sample(loaded, batch_size), sample(loaded))


def test_the_prefix_is_the_most_probable_continuation(loaded):
    """Whole forward passes without a cache choose the same tokens up to rounding."""
    ids = sample(loaded)
    model = load(loaded.source, dtype=torch.float32).model
    with torch.no_grad():
        logits = model(ids).logits[:, :-1, 3:259]
    gap = logits.amax(dim=-1) - logits.gather(-1, ids[:, 1:, None] - 3)[..., 0]
    in_prefix = torch.arange(1, LENGTH) < GREEDY[:, None]
    # A bf16 body moves the logits of this model, of size 1, by a few hundredths.
    assert gap[in_prefix].max() < 0.1
    assert (gap[~in_prefix] > 0.1).float().mean() > 0.5


def test_cold_draws_are_greedy(loaded):
    cold = sample(loaded, temperature=0.001)
    greedy = ModelTeacher(loaded, CPU, LENGTH).sample(STARTS, GREEDY.new_full((7,), LENGTH), 1, 0)
    assert (cold == greedy).float().mean() > 0.9  # all but near ties and what follows them


def test_what_becomes_of_the_base_model_does_not_matter(tiny_llama_path):
    base = load(str(tiny_llama_path))
    expected = sample(base)
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.zero_()
    assert torch.equal(sample(base), expected)


def test_the_digest_names_model_and_arithmetic(loaded):
    teacher = ModelTeacher(loaded, CPU, LENGTH)
    assert teacher.digest.startswith(loaded.digest)
    assert str(teacher.dtype).removeprefix("torch.") in teacher.digest
