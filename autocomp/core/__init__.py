"""Vocabulary shared by every part of autocomp: pure Python, no torch at import."""
