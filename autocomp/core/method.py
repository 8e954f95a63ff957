"""The contracts that methods fulfil. A method is one file with a spec and one of these classes."""

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from autocomp.core.sketch import SiteKind
from autocomp.core.stats import Needs, Stats

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class SiteMethod(Protocol):
    """Compresses the weight of one site, given only that weight and its statistics.

    Class attributes: ``spec`` (the spec dataclass), ``version`` (part of store keys: raise it when
    results change), ``summary`` (one line), ``reference`` (URL of the paper), ``needs`` and
    ``kinds`` (which kinds of site it applies to).
    """

    spec: ClassVar[type[Any]]
    version: ClassVar[int]
    summary: ClassVar[str]
    reference: ClassVar[str]
    needs: ClassVar[frozenset[Needs]]
    kinds: ClassVar[frozenset[SiteKind]]

    def layout(self, spec: Any, shape: tuple[int, int], dtype: str) -> Any:
        """Return the format instance (exact tensors and bytes) from shapes alone.

        Raises:
            PlanError: If the spec does not fit the shape (a group size that does not divide it).
        """
        ...

    def compress(self, weight: "Tensor", spec: Any, stats: Stats | None, dtype: str) -> Any:
        """Return a ``CompressedWeight``; ``weight`` is (out, in), fp32, and is not modified."""
        ...
