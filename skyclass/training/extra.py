"""The extra `train`: libraries that only training and evaluation use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigError


@contextmanager
def train_extra(what: str) -> Iterator[None]:
    """Turn a missing library into a `ConfigError` that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} needs {error.name}: pip install 'skyclass[train]'") from error
