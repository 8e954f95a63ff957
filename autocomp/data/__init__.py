"""Corpora, data recipes and token windows."""

from autocomp.data.corpus import SPLITS, Corpus, Split, load_corpus
from autocomp.data.recipes import recipe_folder, recipe_windows
from autocomp.data.windows import Windows, interleave, windows

__all__ = [
    "SPLITS",
    "Corpus",
    "Split",
    "Windows",
    "interleave",
    "load_corpus",
    "recipe_folder",
    "recipe_windows",
    "windows",
]
