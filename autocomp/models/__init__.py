"""Loading models and finding their sites by structure."""

from autocomp.models.loading import LoadedModel, load, sketch_of
from autocomp.models.structure import Structure, build_sketch, groups, structure
from autocomp.models.weights import get_weight, set_weight

__all__ = [
    "LoadedModel",
    "Structure",
    "build_sketch",
    "get_weight",
    "groups",
    "load",
    "set_weight",
    "sketch_of",
    "structure",
]
