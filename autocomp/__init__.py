"""autocomp: search the joint space of bits, sparsity, rank and structure of a causal LM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocomp.layers.native import load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the public verbs on first use: ``import autocomp`` stays light."""
    if name == "load":
        from autocomp.layers.native import load

        return load
    raise AttributeError(f"module 'autocomp' has no attribute {name!r}")
