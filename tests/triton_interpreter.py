"""Triton without a GPU: a process in which its kernels are interpreted, with NumPy."""

import importlib
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor


def use_interpreter() -> None:
    """Before a process imports Triton. Up to 3.6 it does not know NumPy 2.4 (its pull 9172)."""
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    interpreter = importlib.import_module("triton.runtime.interpreter")
    patch = interpreter._patch_lang_tensor

    def patch_for_numpy(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_for_numpy


def interpreting_process() -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=use_interpreter)
