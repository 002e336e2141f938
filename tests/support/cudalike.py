"""CUDA graphs as they would behave, on the CPU: what runs while one is captured is done again by its replay.

As on a GPU, a replay reads and writes the memory of the capture and nothing else, Python has no part in it, and work
that needs its answer on the host cannot be captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ON_THE_HOST = ("aten.item", "_local_scalar_dense", "nonzero", "masked_select")


class Graph(TorchDispatchMode):
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if any(name in str(op) for name in ON_THE_HOST):
            raise RuntimeError(f"{op} waits for the GPU: not while a graph is captured")
        out = op(*args, **(kwargs or {}))
        self.steps.append((op, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Do all steps again, each into the memory it wrote to."""
        for op, args, kwargs, out in self.steps:
            owned = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)}
            again = op(*args, **kwargs)
            for place, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if torch.is_tensor(place) and place.untyped_storage().data_ptr() not in owned:  # no view, not in place
                    place.copy_(new)


class Stream:
    """Stands in for torch.cuda.Stream: on a CPU everything is in order."""

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None: ...


@contextmanager
def capture(graph: Graph, **_: Any) -> Iterator[None]:
    """Stands in for torch.cuda.graph."""
    with graph:
        yield


@pytest.fixture
def cuda_graphs(monkeypatch):
    """A torch whose CUDA graphs are these."""
    for name, thing in {"CUDAGraph": Graph, "graph": capture, "Stream": Stream, "current_stream": Stream}.items():
        monkeypatch.setattr(torch.cuda, name, thing)
    for name in ("stream", "device"):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
