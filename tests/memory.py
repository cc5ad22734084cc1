"""How many bytes of tensors are alive, counted as operations make and use them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Memory(TorchDispatchMode):
    """Inside, every storage that an operation reads or makes is counted, once, until it is freed.

    Attributes:
        live: bytes that are alive.
        peak: the most that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.counted = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage() not in self.counted:
                storage = leaf.untyped_storage()
                self.counted[storage] = None
                self.live += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def free(self, size: int) -> None:
        self.live -= size
