"""Corpora, data recipes and token windows."""

from autocomp.data.corpus import SPLITS, Corpus, Split, load_corpus
from autocomp.data.protocols import PROTOCOLS, protocol_windows
from autocomp.data.recipes import recipe_folder, recipe_windows
from autocomp.data.windows import Windows, interleave, windows

__all__ = [
    "PROTOCOLS",
    "SPLITS",
    "Corpus",
    "Split",
    "Windows",
    "interleave",
    "load_corpus",
    "protocol_windows",
    "recipe_folder",
    "recipe_windows",
    "windows",
]
