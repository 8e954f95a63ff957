"""The contract that every data recipe fulfils, as functions to call from any test runner.

``names`` lists the recipes, :class:`ToyTeacher` writes for them, and the ``check_…`` functions
raise ``AssertionError`` on a breach.
"""

import re

import torch
from torch import Generator, Tensor

from autocomp.core.errors import PlanError
from autocomp.core.method import DataRecipe
from autocomp.core.recipe import CalibrationText, parse_recipe
from autocomp.core.registry import METHODS
from autocomp.core.spec import LayerSpec, Spec
from autocomp.core.stats import Needs
from autocomp.models.sampling import invert_cumulative


class ToyTeacher:
    """A bigram model with random logits as a teacher that counts its calls.

    Args:
        length: Tokens a sequence.
        size: Tokens of the vocabulary, which begins at id 3.
    """

    def __init__(self, length: int = 12, size: int = 40) -> None:
        self.length = length
        self.vocabulary = torch.arange(3, 3 + size)
        self.digest = f"toy-{size}"
        self.calls = 0
        generator = Generator().manual_seed(0)
        self.logits = 2 * torch.randn(3 + size, size, generator=generator)

    def sample(self, starts: Tensor, greedy: Tensor, temperature: float, seed: int) -> Tensor:
        """Continue first tokens; see :meth:`autocomp.core.method.Teacher.sample`."""
        self.calls += 1
        generator = Generator().manual_seed(seed)
        levels = torch.rand(len(starts), self.length, generator=generator)
        written = [starts]
        for position in range(1, self.length):
            logits = self.logits[written[-1]]
            share = torch.softmax(logits / temperature, dim=-1)
            drawn = invert_cumulative(share, levels[:, position, None])[:, 0]
            chosen = torch.where(position < greedy, logits.argmax(dim=-1), drawn)
            written.append(self.vocabulary[chosen])
        return torch.stack(written, dim=1)


def names() -> list[str]:
    """Return the names of the registered data recipes."""
    return [name for name, method in METHODS.items() if method.scope == "data"]


def call(name: str, index: int = 0, seed: int = 0) -> Tensor:
    """Return what one call of a recipe with its default parameters makes of a toy teacher."""
    recipe = METHODS[name]()
    found: Tensor = recipe.call(recipe.spec(), ToyTeacher(), index, seed)
    return found


def check_described(name: str) -> None:
    """The recipe says what it is and where it comes from."""
    recipe = METHODS[name]
    assert isinstance(recipe(), DataRecipe)
    assert recipe.spec.method == name
    assert isinstance(recipe.version, int)
    assert recipe.version >= 1
    assert recipe.summary
    assert "\n" not in recipe.summary
    assert re.match(r"https://\S+$", recipe.reference)
    assert "Reference:" in recipe.__doc__
    assert recipe.reference in recipe.__doc__
    assert all(isinstance(need, Needs) for need in recipe.needs)


def check_tokens(name: str) -> None:
    """Default parameters make a token that parses back, alone and mixed with a corpus."""
    spec = METHODS[name].spec()
    assert isinstance(spec, Spec)
    token = spec.token()
    assert parse_recipe(token) == spec
    assert CalibrationText.parse(token) == CalibrationText(spec)
    assert CalibrationText.parse(f"mix:{token}").token() == f"mix:{token}"
    for read, text in ((parse_recipe, f"{name}-nonsense"), (LayerSpec.parse, token)):
        try:
            read(text)
        except PlanError:
            continue
        raise AssertionError(f"{text!r} was read as {read(text)}")


def check_shape(name: str) -> None:
    """A call gives at least one whole sequence of the teacher's text tokens."""
    ids = call(name)
    teacher = ToyTeacher()
    assert ids.dtype == torch.int64
    assert ids.shape[1:] == (teacher.length,)
    assert len(ids)
    assert set(ids.flatten().tolist()) <= set(teacher.vocabulary.tolist())


def check_seeded(name: str) -> None:
    """A call is a function of its index and the seed; other indices and seeds give other text."""
    ids = call(name, index=1, seed=5)
    assert torch.equal(ids, call(name, index=1, seed=5))
    for index, seed in ((0, 5), (2, 5), (1, 4)):
        assert not torch.equal(ids, call(name, index, seed)), (index, seed)
