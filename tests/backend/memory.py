# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts the memory that torch's tensors take (tracemalloc does not see it)."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class MemoryWatch(TorchDispatchMode):
    """The most bytes that live tensors made inside held at once; views of what was there before do not count."""

    def __init__(self):
        super().__init__()
        self.held, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        before = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs))}
        for x in tensors(out):
            storage = x.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            if size and key not in self.known and key not in before:
                self.known.add(key)
                self.held += size
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key, size):
        self.known.discard(key)
        self.held -= size


def tensors(values):
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors(value)
