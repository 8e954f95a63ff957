"""Quiet libraries."""

import logging

import optuna
import transformers

from autocomp.cli.libraries import quiet_libraries


def test_only_errors_are_left():
    before = optuna.logging.get_verbosity()
    try:
        quiet_libraries()
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
        assert transformers.utils.logging.get_verbosity() == logging.ERROR
    finally:
        optuna.logging.set_verbosity(before)
