"""Evaluation mode without gradients, for a block or for a method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """No gradients and `eval()` inside; the mode of every submodule is put back after."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def inference(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a method in `evaluation_mode`."""

    @functools.wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with evaluation_mode(self):
            return method(self, *args, **kwargs)

    return run
