"""Measuring assembled models: KL to the base and perplexity on fixed text."""

from autocomp.evaluate.files import FileScores, evaluate_path

__all__ = ["FileScores", "evaluate_path"]
