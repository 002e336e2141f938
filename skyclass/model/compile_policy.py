"""The policy of compilation: for which kinds of device a run compiles its network.

The driver decides once, before any work, so that all workers of a run compute with the same network.
"""

from __future__ import annotations

from typing import Literal

CompileMode = Literal["auto", "on", "off"]
"""What a run asks for: "on" compiles always, "off" never, "auto" if the run is large enough."""

COMPILE_FROM = {"cpu": 50_000, "cuda": 5_000_000}
"""Kind of device -> number of sources from which compilation saves more time than it takes.

On a CPU it takes a quarter of a minute for each kind of machine. On a GPU it takes 20 s and saves 5 us for each source
on an H100.
"""


def compiled_kinds(mode: CompileMode, n_sources: int) -> tuple[str, ...]:
    """Return the kinds of device ("cpu", "cuda") for which a run of `n_sources` compiles its network; () for none.

    >>> compiled_kinds("auto", 1_000_000)
    ('cpu',)
    """
    if mode == "off":
        return ()
    return tuple(kind for kind, least in COMPILE_FROM.items() if mode == "on" or n_sources >= least)
