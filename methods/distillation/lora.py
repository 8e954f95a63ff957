"""LoRA recovery: low-rank training of what a compressed model stores, with KL to the base."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor

from autocomp.core.errors import NumericalError, PlanError
from autocomp.core.method import ModelContext, Scope, TrainingStep
from autocomp.core.seeds import SeedTree
from autocomp.core.stats import Needs
from autocomp.formats.base import CompressedWeight
from autocomp.methods._trained import Trained, trained

LEARNING_RATE = 3e-3
WARM_UP = 0.05
BETAS = (0.9, 0.99)
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """How a finished model is trained: ``lora-r8-300``, ``lora-r16-600-b2-lr0.0005``.

    Token: ``lora-r<rank>-<steps>[-b<windows>][-lr<rate>]``.

    Args:
        rank: Rank of what is added to each weight.
        steps: Optimizer steps.
        windows: Windows of text a step.
        rate: Highest learning rate.
    """

    method: ClassVar[str] = "lora"
    slot: ClassVar[str] = "recovery"

    rank: int
    steps: int
    windows: int = 1
    rate: float = LEARNING_RATE

    def __post_init__(self) -> None:
        """Check that all are positive."""
        if min(self.rank, self.steps, self.windows, self.rate) <= 0:
            raise PlanError(
                f"{self.method}: rank, steps, windows and rate must be positive, got "
                f"{self.rank}, {self.steps}, {self.windows} and {self.rate}."
            )

    def token(self) -> str:
        """Return the canonical token."""
        windows = "" if self.windows == 1 else f"-b{self.windows}"
        rate = "" if self.rate == LEARNING_RATE else f"-lr{self.rate:.12f}".rstrip("0")
        return f"{self.method}-r{self.rank}-{self.steps}{windows}{rate}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the spec of a token.

        Raises:
            PlanError: If the text is no token of this method.
        """
        pattern = rf"{cls.method}-r(\d+)-(\d+)(?:-b(\d+))?(?:-lr(\d*\.\d+))?"
        found = re.fullmatch(pattern, text)
        if not found:
            raise PlanError(
                f"cannot read {text!r}: expected {cls.method}-r<rank>-<steps>[-b<windows a step>]"
                f"[-lr<learning rate>], such as {cls.method}-r8-300."
            )
        rank, steps, windows, rate = found.groups()
        return cls(int(rank), int(steps), int(windows or 1), float(rate or LEARNING_RATE))


class Lora:
    """Trains what costs no bytes: codes by a low-rank change of each weight, and group scales.

    For a weight ``Ŵ = s (q − z)`` the codes are ``clamp(round(q + m ⊙ B A / s))``, with A
    (rank, in), B (out, rank) and m (out, 1) the root mean square of each row, and the scales
    ``s ρ`` with one ratio ρ a group; B starts at 0 and ρ at 1, so training starts at the model as
    it is stored. Rounding passes gradients straight through. Floating values move by ``m ⊙ B A``
    within their mask. Nothing is kept but new codes, scales and values: an adapter beside them
    would cost ``rank · (in + out)`` values, and adding it would fill the zeros of a mask.

    The loss is the KL of the base to the model on calibration text, AdamW its optimizer, with a
    warm-up and a cosine. There is no dense model trained in the same way to compare with: the
    base has a KL of zero, which is the least, so it would stay what it is.

    Reference: Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685; Kim et al. 2023, PEQA
    (scales alone), https://arxiv.org/abs/2305.14152
    """

    scope: ClassVar[Scope] = "model"
    spec: ClassVar[type[LoraSpec]] = LoraSpec
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "train codes by low rank, and scales, with KL to the base"
    reference: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    needs: ClassVar[frozenset[Needs]] = frozenset()

    def train(self, spec: LoraSpec, context: ModelContext) -> Iterator[TrainingStep]:
        """Train the linears of a compressed model, from its start or from a saved state.

        Args:
            spec: Rank, steps, windows a step, learning rate.
            context: Its linears, the loss, and the state to go on from.

        Yields:
            Every step when it is done.

        Raises:
            NumericalError: If the loss is not finite.
        """
        generator = Generator().manual_seed(SeedTree(context.seed).child("lora").seed)
        weights = {
            name: trained(linear.compressed(), spec.rank, generator)
            for name, linear in context.linears.items()
        }
        training = _Training(weights)
        done = training.restore(context.state) if context.state else 0
        for step in range(done, spec.steps):
            for name, weight in weights.items():
                context.linears[name].hold(weight())
            loss = context.backward(_windows(step, spec, context))
            if not math.isfinite(loss):
                raise NumericalError(
                    f"the KL of step {step + 1} is {loss}; take a learning rate below {spec.rate}."
                )
            training.update(spec.rate * _share(step, spec.steps))
            yield TrainingStep(step + 1, loss, training.state, training.stored)


class _Training:
    """The optimizer of some trained weights, with all that is needed to go on later.

    Args:
        weights: By site.
    """

    def __init__(self, weights: Mapping[str, Trained]) -> None:
        self.weights = weights
        self.parameters = {
            f"{site}/{name}": parameter
            for site, weight in weights.items()
            for name, parameter in weight.named_parameters()
        }
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), betas=BETAS, weight_decay=0.0, fused=True
        )
        self.steps = 0

    def update(self, rate: float) -> None:
        """Take one step along the gradients and drop them."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def stored(self) -> dict[str, CompressedWeight]:
        """Return the compressed weights as trained so far."""
        return {site: weight.stored() for site, weight in self.weights.items()}

    def state(self) -> dict[str, Tensor]:
        """Return parameters, their moments and the number of steps."""
        tensors = {"steps": torch.tensor(self.steps)}
        for name, parameter in self.parameters.items():
            tensors[name] = parameter.detach()
            tensors |= {f"{name}/{key}": self.optimizer.state[parameter][key] for key in MOMENTS}
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> int:
        """Take over what :meth:`state` returned; return the number of steps done."""
        self.steps = int(state["steps"])
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[name])
            moments = {key: state[f"{name}/{key}"].to(parameter.device) for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.steps)), **moments}
        return self.steps


def _windows(step: int, spec: LoraSpec, context: ModelContext) -> list[int]:
    """Return the windows of a step; each epoch reads all of them in an order of its own."""
    chosen = []
    for index in range(step * spec.windows, (step + 1) * spec.windows):
        epoch, place = divmod(index, context.windows)
        seed = SeedTree(context.seed).child("lora", "epoch", epoch).seed
        order = torch.randperm(context.windows, generator=Generator().manual_seed(seed))
        chosen.append(int(order[place]))
    return chosen


def _share(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: a short warm-up times a cosine."""
    warm = min(1.0, (step + 1) / (WARM_UP * steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
