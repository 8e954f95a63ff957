"""What makes the inputs of linears, so that a scale or an order of channels can be folded into it.

A linear that reads ``x`` computes the same from ``x / s`` once its columns are multiplied by
``s``. The division costs nothing where whatever makes ``x`` can be divided instead: the weight and
bias of a norm, or the rows and biases of a linear whose outputs reach ``x`` channel by channel,
times something that does not depend on them. That is ``v_proj`` in front of an attention's last
linear, ``up_proj`` in a gated MLP, and ``fc1`` in front of a ReLU; it is neither ``gate_proj`` nor
``fc1`` in front of a GELU. An order of the channels inside an MLP costs nothing where the rows of
all linears in front of its last one take it.

Nothing here goes by names. Which values make which channels is read off a model that is given
single tokens, where attention returns the values as they are. Then every claim is tried on the
model, with scales that are powers of two or a random order: a right one leaves all logits as they
were, to the bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from autocomp.models.structure import Structure
from autocomp.models.weights import get_weight
from autocomp.models.wiring import probe_tokens, trace

SIGNATURE_TOKENS = 16


@dataclass(frozen=True)
class Producer:
    """What makes the input of some linears.

    Channel ``j`` of the input is made by row ``rows[j]`` of the producer. In :func:`producers` it
    is proportional to it: dividing that row by ``s > 0``, and its bias with it, divides the
    channel by ``s``. Channels that come from one row (heads that share keys and values) share its
    scale.

    Args:
        name: Module name.
        kind: ``norm``, whose rows are the elements of its weight, or ``linear``.
        offset: A norm multiplies by ``offset + weight``: 1 in Gemma, else 0.
        has_bias: Whether there is a bias to divide too.
        rows: (in,) int64, the row that makes each channel of the input.
        readers: All linears that read the input.
    """

    name: str
    kind: Literal["norm", "linear"]
    offset: float
    has_bias: bool
    rows: Tensor
    readers: tuple[str, ...]


@torch.no_grad()
def producers(parts: Structure) -> dict[str, Producer]:
    """Return what makes each input into whose maker a scale can be folded.

    Args:
        parts: A model with weights, in evaluation mode and without bypasses.

    Returns:
        By the input's name (``Site.reads``). Inputs that cannot be scaled from in front are
        absent: what a GELU makes, and the final norm's output under a tied head.
    """
    claims: dict[str, list[Producer]] = {}
    inner = (claim for mlp in parts.mlp_names for claim in _inner(parts, mlp))
    for label, claim in (*_norms(parts), *_values(parts), *inner):
        claims.setdefault(_role(label), []).append(claim)
    reads, expected = parts.reads(), _logits(parts)
    found: dict[str, Producer] = {}
    for group in claims.values():
        if torch.equal(_logits(parts, _scaled(parts, group)), expected):
            found |= {reads[reader]: claim for claim in group for reader in claim.readers}
    return found


@torch.no_grad()
def row_makers(parts: Structure) -> dict[str, tuple[Producer, ...]]:
    """Return the linears in front of each MLP's last one, which together make its input.

    Channel ``j`` of the input is made by row ``rows[j]`` of each of them, and by no other: where
    the rows of all are put in another order, so are the channels.

    Args:
        parts: A model with weights, in evaluation mode and without bypasses.

    Returns:
        By the input's name (``Site.reads``); a linear that is several in one is there as often.
        Inputs that are not made so are absent.
    """
    claims: dict[str, list[tuple[Producer, ...]]] = {}
    for mlp in parts.mlp_names:
        makers = tuple(claim for _, claim in _inner(parts, mlp))
        claims.setdefault(_role(mlp), []).append(makers)
    reads, expected = parts.reads(), _logits(parts)
    found: dict[str, tuple[Producer, ...]] = {}
    for group in claims.values():
        made = [makers for makers in group if makers]
        if torch.equal(_logits(parts, _moved(made)), expected):
            found |= {reads[makers[0].readers[0]]: makers for makers in made}
    return found


def _norms(parts: Structure) -> Iterator[tuple[str, Producer]]:
    """Yield the norms that linears read."""
    readers: dict[str, list[str]] = {}
    for linear, norm in trace(parts).norms.items():
        readers.setdefault(norm, []).append(linear)
    for norm, linears in readers.items():
        module: Any = parts.get(norm)
        offset = _offset(module)
        if offset is not None:
            rows = torch.arange(len(module.weight))
            biased = getattr(module, "bias", None) is not None
            yield norm, Producer(norm, "norm", offset, biased, rows, tuple(linears))


def _offset(norm: Any) -> float | None:
    """Return the ``c`` of a norm that multiplies by ``c + weight``, ``None`` for another norm."""
    inputs = torch.linspace(-1, 1, len(norm.weight)).to(norm.weight)
    for offset in (0.0, 1.0):
        silent = {name: torch.zeros_like(value) for name, value in norm.named_parameters()}
        silent["weight"] -= offset
        if not functional_call(norm, silent, (inputs,)).any():
            return offset
    return None


def _values(parts: Structure) -> Iterator[tuple[str, Producer]]:
    """Yield the linears whose outputs an attention returns when there is one token to attend to.

    Each output is replaced by random numbers, a signature a row over several such texts; the
    channels of what the last linear reads bear the signatures of the rows that made them.
    """
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def draws(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            outputs[name] = torch.randn(output.shape, generator=generator).to(output)
            return outputs[name]

        return hook

    def keeps(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, args: Any) -> None:
            inputs[name] = args[0]

        return hook

    with ExitStack() as hooks:
        for attention in parts.attention_names:
            *readers, writer = parts.linears(attention)
            for reader in readers:
                module = parts.get(reader)
                hooks.enter_context(module.register_forward_hook(draws(reader)))
            module = parts.get(writer)
            hooks.enter_context(module.register_forward_pre_hook(keeps(writer)))
        parts.model(input_ids=probe_tokens(parts, SIGNATURE_TOKENS, 1), use_cache=False)
    for attention in parts.attention_names:
        *readers, writer = parts.linears(attention)
        for reader in readers:
            made = {mark: row for row, mark in enumerate(_signatures(outputs[reader]))}
            rows = [made.get(mark) for mark in _signatures(inputs[writer])]
            if None not in rows:
                yield reader, _linear(parts, reader, torch.tensor(rows), writer)


def _signatures(rows: Tensor) -> list[bytes]:
    """Return the values of each channel, (texts, 1, channels), as bytes."""
    return [channel.numpy().tobytes() for channel in rows[:, 0].float().cpu().T.contiguous()]


def _inner(parts: Structure, mlp: str) -> Iterator[tuple[str, Producer]]:
    """Yield every way in which rows of an MLP's linear can be its inner channels, one by one.

    A linear with several times as many rows is several linears in one, such as gate and up.
    """
    *readers, writer = parts.linears(mlp)
    width = get_weight(parts.model, writer).shape[1]
    for reader in readers:
        height = get_weight(parts.model, reader).shape[0]
        for start in range(0, height - width + 1, width):
            rows = torch.arange(start, start + width)
            yield f"{reader}@{start}", _linear(parts, reader, rows, writer)


def _linear(parts: Structure, name: str, rows: Tensor, writer: str) -> Producer:
    """Return the claim that rows of a linear make the input of a sub-block's last one."""
    module: Any = parts.get(name)
    return Producer(name, "linear", 0.0, module.bias is not None, rows, (writer,))


def _role(label: str) -> str:
    """Return what a name has in common with its likes in other blocks."""
    return ".".join(part for part in label.split(".") if not part.isdigit())


@dataclass(frozen=True)
class _Change:
    """A claim put to the test: outputs are changed where they are made, and back where read.

    Args:
        name: The module whose outputs change.
        made: Changes its outputs.
        readers: The linears that read them.
        read: Changes the inputs of these back.
    """

    name: str
    made: Callable[[Tensor], Tensor]
    readers: tuple[str, ...]
    read: Callable[[Tensor], Tensor]


def _logits(parts: Structure, changes: Iterable[_Change] = ()) -> Tensor:
    """Return logits of a few tokens under changes."""
    with ExitStack() as hooks:
        for change in changes:
            module: Any = parts.get(change.name)
            hooks.enter_context(module.register_forward_hook(_after(change.made)))
            for reader in change.readers:
                module = parts.get(reader)
                hooks.enter_context(module.register_forward_pre_hook(_before(change.read)))
        logits: Tensor = parts.model(input_ids=probe_tokens(parts), use_cache=False).logits
    return logits


def _scaled(parts: Structure, claims: Iterable[Producer]) -> Iterator[_Change]:
    """Yield a multiplication by 1, 2 or 4 at random, row by row, for each claim."""
    generator = torch.Generator().manual_seed(0)
    for claim in claims:
        scale = torch.ones(get_weight(parts.model, claim.name).shape[0])
        used = claim.rows.unique()
        scale[used] = 2.0 ** torch.randint(3, (len(used),), generator=generator)
        back = 1 / scale[claim.rows]
        made, read = partial(_multiplied, by=scale), partial(_multiplied, by=back)
        yield _Change(claim.name, made, claim.readers, read)


def _moved(claims: Iterable[Sequence[Producer]]) -> Iterator[_Change]:
    """Yield a random order of the channels, in all linears that make them, for each claim."""
    generator = torch.Generator().manual_seed(0)
    for makers in claims:
        order = torch.randperm(len(makers[0].rows), generator=generator)
        for place, maker in enumerate(makers):
            yield _Change(
                maker.name,
                partial(_permuted, rows=maker.rows, order=order),
                () if place else maker.readers,
                partial(_permuted, rows=torch.arange(len(order)), order=order.argsort()),
            )


def _multiplied(values: Tensor, by: Tensor) -> Tensor:
    """Return values (…, n) times a vector (n,)."""
    return values * by.to(values)


def _permuted(values: Tensor, rows: Tensor, order: Tensor) -> Tensor:
    """Return values (…, n) with those of ``rows`` (m,) in another order (m,)."""
    rows = rows.to(values.device)
    return values.index_copy(-1, rows, values[..., rows[order.to(values.device)]])


def _after(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that changes outputs."""
    return lambda _, __, output: change(output)


def _before(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any], tuple[Tensor, ...]]:
    """Return a hook that changes inputs."""
    return lambda _, args: (change(args[0]), *args[1:])
