"""The contract that every model method fulfils, as functions to call from any test runner.

``tokens`` lists valid tokens, short ones; :class:`ToyModel` is what they train; the ``check_…``
functions raise ``AssertionError`` on a breach.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from autocomp.core.errors import ConfigError, PlanError
from autocomp.core.method import ModelContext, ModelMethod, TrainingStep
from autocomp.core.registry import METHODS
from autocomp.core.spec import LayerSpec, Spec
from autocomp.formats.base import CompressedWeight
from autocomp.search.recover import parse_recovery
from autocomp.testing.formats import examples

TOKENS = {"lora": ("lora-r2-12", "lora-r2-12-b2", "lora-r1-6-lr0.0005")}
FIXED = ("mask", "index", "zero")
"""Local names of tensors that no training changes."""


class ToyLinear:
    """A compressed linear that keeps what it was last told to multiply."""

    def __init__(self, weight: CompressedWeight) -> None:
        self._weight = weight
        self.held: Tensor | None = None

    def compressed(self) -> CompressedWeight:
        """Return the weight."""
        return self._weight

    def hold(self, weight: Tensor) -> None:
        """Multiply by ``weight`` from now on."""
        self.held = weight


class ToyModel:
    """Linears of every format that read random inputs; the targets are those of other weights.

    ``read`` lists the windows of every call that computed a gradient.

    Args:
        seed: Seed of inputs and targets.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = Generator().manual_seed(seed)
        kinds = ("uniform", "bitmask", "nm", "factors", "prepared", "sum")
        weights = {name: examples(name)[-1].weight for name in kinds}
        self.linears = {name: ToyLinear(weight) for name, weight in weights.items()}
        self.inputs: dict[str, Tensor] = {}
        self.targets: dict[str, Tensor] = {}
        self.read: list[list[int]] = []
        for name, weight in weights.items():
            dense = weight.operands().weight
            noise = torch.randn(dense.shape, generator=generator) * dense.std()
            self.inputs[name] = torch.randn(4, 16, dense.shape[1], generator=generator)
            self.targets[name] = self.inputs[name] @ (dense + 0.1 * noise).T

    def loss(self, windows: Sequence[int]) -> Tensor:
        """Return the mean squared error of what is held, relative to the targets."""
        total = torch.zeros(())
        for name, linear in self.linears.items():
            inputs, targets = self.inputs[name][list(windows)], self.targets[name][list(windows)]
            held = linear.held
            assert held is not None, f"{name} holds nothing"
            total = total + (inputs @ held.T - targets).square().mean() / targets.square().mean()
        return total

    def context(self, state: Mapping[str, Tensor] | None = None) -> ModelContext:
        """Return the context that trains it."""

        def backward(windows: Sequence[int]) -> float:
            self.read.append(list(windows))
            loss = self.loss(windows)
            loss.backward()
            return loss.item()

        return ModelContext(self.linears, 4, backward, seed=0, state=state or {})


def names() -> list[str]:
    """Return the names of the registered model methods."""
    return [name for name, method in METHODS.items() if method.scope == "model"]


def tokens(name: str) -> tuple[str, ...]:
    """Return valid tokens of a model method."""
    return TOKENS[name]


def train(
    token: str, model: ToyModel, state: Mapping[str, Tensor] | None = None, stop: int | None = None
) -> list[TrainingStep]:
    """Train a toy model; the steps' functions are only good for the last step returned."""
    spec = parse_recovery(token)
    found = []
    for step in METHODS[spec.method]().train(spec, model.context(state)):
        found.append(step)
        if step.number == stop:
            break
    return found


def check_protocol(name: str) -> None:
    """The method fulfils its protocol."""
    assert isinstance(METHODS[name](), ModelMethod)


def check_tokens(name: str) -> None:
    """Tokens parse back to equal, different specs; a site cannot have one."""
    specs = {token: parse_recovery(token) for token in tokens(name)}
    assert len(set(specs.values())) == len(specs)
    for token, spec in specs.items():
        assert isinstance(spec, Spec)
        assert spec.token() == token
        _refused(PlanError, token)
    for read, text in ((parse_recovery, f"{name}-nonsense"), (parse_recovery, "nonsense-r8-300")):
        try:
            read(text)
        except (PlanError, ConfigError):
            continue
        raise AssertionError(f"{text!r} was read as {read(text)}")


def check_starts_unchanged(name: str) -> None:
    """The first loss is that of the stored weights, to the bit."""
    for token in tokens(name):
        model, plain = ToyModel(), ToyModel()
        first = train(token, model, stop=1)[0]
        for linear in plain.linears.values():
            linear.hold(linear.compressed().operands().weight)
        assert first.loss == plain.loss(model.read[0]).item()


def check_keeps_formats(name: str) -> None:
    """Layouts, bytes, masks and zero points stay; something else changes; inputs do not."""
    for token in tokens(name):
        model = ToyModel()
        before = {
            site: {local: tensor.clone() for local, tensor in linear.compressed().tensors.items()}
            for site, linear in model.linears.items()
        }
        steps = train(token, model)
        assert [step.number for step in steps] == list(range(1, len(steps) + 1))
        trained = steps[-1].weights()
        assert trained.keys() == model.linears.keys()
        for site, weight in trained.items():
            original = model.linears[site].compressed()
            weight.check()
            assert weight.layout == original.layout
            assert weight.nbytes == original.nbytes
            changed = False
            for local, tensor in before[site].items():
                assert torch.equal(tensor, original.tensors[local]), f"{site}: {local} modified"
                same = torch.equal(tensor, weight.tensors[local])
                changed |= not same
                if local.rpartition(".")[2] in FIXED:
                    assert same, f"{site}: {local} did not stay"
            assert changed, f"{site} was not trained"


def check_learns(name: str) -> None:
    """The loss of what is stored in the end is below that of the start."""
    model, plain = ToyModel(), ToyModel()
    trained = train(tokens(name)[0], model)[-1].weights()
    losses = []
    for weights in ({n: x.compressed() for n, x in plain.linears.items()}, trained):
        for site, weight in weights.items():
            plain.linears[site].hold(weight.operands().weight)
        losses.append(plain.loss(range(4)).item())
    assert losses[1] < losses[0], losses


def check_resumes(name: str) -> None:
    """A run that goes on from any step ends with the same bits as one that was not stopped."""
    for token in tokens(name):
        whole = train(token, ToyModel())
        for stop in (1, len(whole) - 1):
            stopped = train(token, ToyModel(), stop=stop)[-1]
            state = {key: tensor.clone() for key, tensor in stopped.state().items()}
            rest = train(token, ToyModel(), state)
            assert [step.number for step in rest] == list(range(stop + 1, len(whole) + 1))
            assert [step.loss for step in rest] == [step.loss for step in whole[stop:]]
            for site, weight in rest[-1].weights().items():
                for local, tensor in whole[-1].weights()[site].tensors.items():
                    assert torch.equal(tensor, weight.tensors[local]), (site, local)


def _refused(kind: type[Exception], token: str) -> None:
    """Assert that no layer spec has such a token."""
    try:
        LayerSpec.parse(token)
    except kind:
        return
    raise AssertionError(f"{token!r} was read as a layer spec")
