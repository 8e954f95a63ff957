"""Measuring assembled models: KL to the base, perplexity on fixed text, accuracy on tasks."""

from autocomp.evaluate.files import TaskRequest, TextRequest, evaluate_path, save_reference
from autocomp.evaluate.record import Measurement

__all__ = ["Measurement", "TaskRequest", "TextRequest", "evaluate_path", "save_reference"]
