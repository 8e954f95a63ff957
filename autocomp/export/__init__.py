"""Turning a finished artefact into a folder that other programs load."""

from autocomp.export.model import EXPORT_FORMATS, ExportReport, export_model

__all__ = ["EXPORT_FORMATS", "ExportReport", "export_model"]
