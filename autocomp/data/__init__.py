"""Corpora and token windows."""

from autocomp.data.corpus import SPLITS, Corpus, Split, load_corpus
from autocomp.data.windows import Windows, windows

__all__ = ["SPLITS", "Corpus", "Split", "Windows", "load_corpus", "windows"]
