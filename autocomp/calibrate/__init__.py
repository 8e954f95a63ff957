"""Calibration: walk a model block by block and collect statistics of every site."""
