"""Compressed layers: their store, applying plans to a live model, and the native folder."""

from autocomp.layers.apply import Candidate
from autocomp.layers.native import load, write_native
from autocomp.layers.store import LayerStore, StoreKey, StoreUsage

__all__ = ["Candidate", "LayerStore", "StoreKey", "StoreUsage", "load", "write_native"]
