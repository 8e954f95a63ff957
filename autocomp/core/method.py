"""The contracts that methods fulfil. A method is one file with a spec and one of these classes.

Every method, whatever its scope, is a line in ``METHODS`` and carries the class attributes of
:class:`Method`. Methods see tensors and types of ``core`` only: models are loaded, texts read and
studies written by their callers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from autocomp.core.sketch import SiteKind, Sketch
from autocomp.core.spec import LayerSpec, MaskSpec
from autocomp.core.stats import Needs, Stats

if TYPE_CHECKING:
    from torch import Tensor, nn

Scope = Literal["site", "input", "refinement", "block", "cache", "architecture", "model", "data"]


@runtime_checkable
class Method(Protocol):
    """What every method says about itself.

    Class attributes: ``scope`` (which contract below it fulfils), ``spec`` (the spec dataclass),
    ``version`` (part of store keys: raise it when results change), ``summary`` (one line),
    ``reference`` (URL of the paper) and ``needs`` (statistics it reads). A method some of whose
    specs read more has a ``needs_of(spec)`` that returns what they add, one that makes no sense
    beside just any other a ``check_layer(layer_spec)`` that raises an ``UnsupportedError``. A
    method that makes codes but takes more than their bits and groups has ``usual``, the token that
    a user means by its name, with ``{bits}`` or ``{grid}`` (``w3g64``) left open.
    """

    scope: ClassVar[Scope]
    spec: ClassVar[type[Any]]
    version: ClassVar[int]
    summary: ClassVar[str]
    reference: ClassVar[str]
    needs: ClassVar[frozenset[Needs]]


@runtime_checkable
class SiteMethod(Method, Protocol):
    """Compresses the weight of one site, given only that weight and its statistics.

    Scope ``site``: the slots structure, factor, mask, quantizer and residual. A residual method is
    given the error ``W − Ŵ`` of the other slots as its weight. ``kinds`` says which kinds of site
    it applies to, ``formats`` which formats its layouts have. A quantizer with groups may have a
    ``compress_together(weights, specs, stats, dtype)`` that does in one run what ``compress`` does
    to several weights that read the same input, on groups of one size. A quantizer that goes over
    a weight again and again says how often in ``passes(spec)``, which estimates count.
    """

    kinds: ClassVar[frozenset[SiteKind]]
    formats: ClassVar[tuple[str, ...]]

    def layout(self, spec: Any, shape: tuple[int, int], dtype: str) -> Any:
        """Return the format instance (exact tensors and bytes) from shapes alone.

        Raises:
            PlanError: If the spec does not fit the shape (a group size that does not divide it).
        """
        ...

    def compress(self, weight: "Tensor", spec: Any, stats: Stats | None, dtype: str) -> Any:
        """Return a ``CompressedWeight``; ``weight`` is (out, in), fp32, and is not modified."""
        ...


@dataclass(frozen=True, slots=True)
class Reader:
    """A linear that reads the input which an input method changes.

    Args:
        weight: (out, in) fp32.
        spec: What else is done to it; its input and activation slots are empty.
        rounded: Returns ``Ŵ`` (out, in) fp32 for a weight, as the reader's quantizer rounds to
            nearest; the identity without a quantizer.
        rounded_input: Returns inputs (…, in) with given statistics as the reader's activation slot
            rounds them; the identity without one.
    """

    weight: "Tensor"
    spec: LayerSpec
    rounded: "Callable[[Tensor, Stats | None], Tensor]"
    rounded_input: "Callable[[Tensor, Stats | None], Tensor]"


@runtime_checkable
class InputMethod(Method, Protocol):
    """Changes what a linear reads: ``y = (W T⁻¹)(T x)``, or rounds the input itself.

    Scope ``input``: the slots input and activation. A step of ``autocomp.formats.steps`` is what
    is stored and what the runtime applies to the input. ``kinds`` says which kinds of site it
    applies to.
    """

    kinds: ClassVar[frozenset[SiteKind]]

    def step(self, spec: Any, in_features: int) -> Any:
        """Return the stored ``Step`` (exact tensors and bytes) from shapes alone."""
        ...

    def fit(
        self, readers: Sequence[Reader], spec: Any, stats: Stats | None
    ) -> "dict[str, Tensor]":
        """Return the step's tensors for linears that read one input, usually just one linear.

        Args:
            readers: The linears; none for the activation slot, which sees statistics alone.
            spec: The method's spec.
            stats: Statistics of the input, for the activation slot of what it rounds.
        """
        ...


@runtime_checkable
class RefinementMethod(Method, Protocol):
    """Chooses other weights for a mask, as many of every row. Scope and slot ``refinement``."""

    kinds: ClassVar[frozenset[SiteKind]]

    def refine(
        self, weight: "Tensor", keep: "Tensor", mask: MaskSpec, spec: Any, stats: Stats | None
    ) -> "Tensor":
        """Return the refined mask, (out, in) bool, True is kept.

        Args:
            weight: (out, in) fp32, the original.
            keep: (out, in) bool, what a mask method chose; not modified.
            mask: The spec of that mask, whose pattern the result follows too.
            spec: The method's spec.
            stats: Statistics of the input.
        """
        ...


@dataclass(frozen=True, slots=True)
class BlockSite:
    """One linear of a block, as the layer methods left it.

    Args:
        weight: (out, in) fp32, the original.
        spec: Its layer spec.
        compressed: Its ``CompressedWeight``.
    """

    weight: "Tensor"
    spec: LayerSpec
    compressed: Any


@dataclass(frozen=True, slots=True)
class BlockView:
    """A decoder block and what flows through it, on two streams.

    Args:
        block: The module; its compressed sites hold their compressed weights.
        sites: Compressed linears by name relative to the block.
        inputs: Hidden states (windows, length, hidden) that compressed blocks in front produce,
            one tensor a batch.
        targets: What the original block makes of the original inputs, same shapes.
        run: ``run(hidden, batch, weights)`` applies the block to hidden states of windows of a
            batch, whose index gives masks and positions. Linears named in ``weights`` multiply
            with those, (out, in) in the dtype of the hidden states, and gradients reach them.
        seed: Seed of every draw.
    """

    block: "nn.Module"
    sites: Mapping[str, BlockSite]
    inputs: "Sequence[Tensor]"
    targets: "Sequence[Tensor]"
    run: "Callable[[Tensor, int, Mapping[str, Tensor]], Tensor]"
    seed: int


@runtime_checkable
class BlockMethod(Method, Protocol):
    """Optimises the sites of a block together; formats and bytes stay.

    Scope ``block``: a step of the finish, after the layer methods.
    """

    def tokens(self, spec: Any) -> int:
        """Return how many tokens go forward and backward through each block, for estimates."""
        ...

    def compress(self, view: BlockView, spec: Any) -> dict[str, Any]:
        """Return a ``CompressedWeight`` of the same layout for the sites that it changed."""
        ...


@runtime_checkable
class CacheMethod(Method, Protocol):
    """Stores keys and values in few bits. Scope ``cache``, the cache slot of a cache site."""

    kinds: ClassVar[frozenset[SiteKind]]

    def nbytes(self, spec: Any, shape: tuple[int, int], context: int, dtype: str) -> int:
        """Return bytes of one sequence's keys and values of one layer; shape (kv heads, width)."""
        ...

    def keys(self, spec: Any, keys: "Tensor") -> "Tensor":
        """Return (…, tokens, width) keys as the cache gives them back once all are stored.

        The tokens run from one count of :meth:`stored` to a later one.
        """
        ...

    def values(self, spec: Any, values: "Tensor") -> "Tensor":
        """Return (…, tokens, width) values as the cache gives them back once all are stored."""
        ...

    def stored(self, spec: Any, tokens: int) -> tuple[int, int]:
        """Return how many of the first ``tokens`` keys, and values, are stored in few bits.

        What is stored stays so; a token reads what was stored before it came.
        """
        ...


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of architecture by kept channels: what the surgeon cuts.

    Args:
        kept: By name of the MLP sub-block, the sorted indices of the inner channels that stay.
        bias: By name of a linear, the (out,) fp32 bias that makes up for what was cut.
    """

    kept: "Mapping[str, Tensor]"
    bias: "Mapping[str, Tensor]"


@runtime_checkable
class ArchitectureMethod(Method, Protocol):
    """Chooses which structures stay. Scope ``architecture``; a prepared variant of the search."""

    def edit(
        self,
        sketch: Sketch,
        spec: Any,
        weight: "Callable[[str], Tensor]",
        stats: Mapping[str, Stats],
    ) -> Edit:
        """Return what to keep.

        Args:
            sketch: The base model.
            spec: The method's spec.
            weight: Returns a site's (out, in) fp32 weight.
            stats: Dense statistics of the MLPs' output linears (``needs``) by site name.
        """
        ...


class HeldLinear(Protocol):
    """A compressed linear of a model that is trained."""

    def compressed(self) -> Any:
        """Return its ``CompressedWeight``."""
        ...

    def hold(self, weight: "Tensor") -> None:
        """Multiply by another weight until the next call.

        Args:
            weight: What the prepared input is multiplied with, (out, in) of a floating dtype,
                with its graph.
        """
        ...


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a model method trains with.

    Args:
        linears: The compressed linears of the model, by name.
        windows: Number of windows of training text.
        backward: ``backward(windows)`` adds the gradient of the mean KL of the base to the model
            on some windows to what requires one, and returns that KL, nats a token.
        seed: Seed of every draw.
        state: What a :class:`TrainingStep` gave to go on from; empty at the start.
    """

    linears: Mapping[str, HeldLinear]
    windows: int
    backward: Callable[[Sequence[int]], float]
    seed: int
    state: "Mapping[str, Tensor]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """Where training stands after a step; both functions tell of this very moment.

    Args:
        number: Steps done.
        loss: KL of the step's windows before it, nats a token.
        state: Returns all that is needed to go on from here, bit for bit.
        weights: Returns the ``CompressedWeight`` of every linear that was trained.
    """

    number: int
    loss: float
    state: "Callable[[], dict[str, Tensor]]"
    weights: Callable[[], dict[str, Any]]


@runtime_checkable
class ModelMethod(Method, Protocol):
    """Trains a finished model; values change, formats and bytes do not.

    Scope ``model``. Its spec has a field ``steps``, how many steps it takes.
    """

    def train(self, spec: Any, context: ModelContext) -> Iterator[TrainingStep]:
        """Train the linears, yielding every step when it is done; each may be a checkpoint.

        At the start they hold what they compute already, so the first loss is the model's own.
        """
        ...


@runtime_checkable
class Teacher(Protocol):
    """A model that writes text for data recipes.

    Attributes: ``digest`` identifies the model and its arithmetic, ``length`` is how many tokens
    a sequence has to have, and ``vocabulary`` holds the token ids that text consists of, special
    ones left out, (n,) int64 ascending.
    """

    digest: str
    length: int
    vocabulary: "Tensor"

    def sample(
        self, starts: "Tensor", greedy: "Tensor", temperature: float, seed: int
    ) -> "Tensor":
        """Continue token ids to whole sequences; which sequences share a batch changes nothing.

        Args:
            starts: (sequences,) int64, the first tokens.
            greedy: (sequences,) int64, how many tokens, the first included, are not drawn but the
                most probable.
            temperature: Divides the logits of the tokens that are drawn.
            seed: Seed of the draws.

        Returns:
            (sequences, length) int64, on the CPU.
        """
        ...


@runtime_checkable
class DataRecipe(Method, Protocol):
    """Makes training text with a teacher. Scope ``data``; resumable call by call."""

    def call(self, spec: Any, teacher: Teacher, index: int, seed: int) -> "Tensor":
        """Return the token ids (sequences, length) of call ``index``, a pure function of seed."""
        ...
