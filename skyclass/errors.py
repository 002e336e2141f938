"""The errors of skyclass. `SkyclassError` is the base class of all of them.

SkyclassError
├── ConfigError              wrong usage or input, found before any work starts      exit code 2
│   ├── CatalogError         the catalogue or table cannot be read as one
│   ├── ArchiveError         the image folder holds nothing usable
│   └── BundleError          the model bundle is missing, damaged or of another version
├── CannotCompile            no compiler, or the network does not compile: classify goes on uncompiled, train stops
├── InputChanged             a partition was replaced while the run read it         exit code 2
├── TileFault                one tile or band is missing or damaged: data, the run goes on
├── StoreError               the run folder cannot be written or read               exit code 1
│   ├── NotPublished         no class catalogue, or no run, at this path           exit code 2
│   ├── RunMismatch          the folder belongs to another run                      exit code 2
│   ├── LeaseHeld            another driver is working in the folder                exit code 2
│   ├── LeaseLost            another driver has taken over
│   └── CommitConflict       two attempts at one tile gave different bytes
├── PeerLost                 another rank of a training is gone or does not answer
├── RowsLost                 rows in and rows out differ: a defect, never hidden
└── Interrupted              stopped from outside; the same command resumes         exit code 4
    ├── ClusterLost          the workers or the scheduler are gone
    ├── NotStarted           stopped, or no local cluster, before any work began
    └── ArchiveDown          the image archive does not answer
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

FaultKind = Literal["missing_tile", "missing_band", "bad", "changed"]


class SkyclassError(Exception):
    """Base of every error that skyclass raises on purpose.

    `message` is one line, `details` are lines that belong below it, one for each thing that is wrong.
    """

    exit_code = 1

    def __init__(self, message: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(details))
        self.message, self.details = message, tuple(details)

    def __str__(self) -> str:
        return "\n  ".join([self.message, *self.details])


class ConfigError(SkyclassError):
    """Wrong usage or configuration; one message lists all problems."""

    exit_code = 2


class CatalogError(ConfigError):
    """The catalogue or table is missing, or is not what it claims to be."""


class TableWarning(UserWarning):
    """Values of a user's table are not used; the message names the columns and counts the values."""


class ArchiveError(ConfigError):
    """The image location holds no tile that this run could use."""


class BundleError(ConfigError):
    """The model bundle is missing, damaged, or does not fit this version."""


class CannotCompile(SkyclassError):
    """A network cannot be compiled on this machine; uncompiled it says the same, more slowly."""


class InputChanged(SkyclassError):
    """The catalogue is no longer the one that the run was planned with: its rows would be a mixture of two."""

    exit_code = 2


class TileFault(SkyclassError):
    """A tile, or one band of it, cannot be used: the reason becomes data, the run goes on.

    `kind` says which: "missing_tile" (the archive has no image of it), "missing_band" (it has other
    bands), "bad" (there is a file, and it is damaged or not an Atlas image), "changed" (a file was replaced,
    modified or removed after the tile was opened: the tile can be done again as a whole).
    """

    def __init__(self, coadd_id: str, reason: str, band: str | None = None, kind: FaultKind = "bad") -> None:
        self.coadd_id, self.reason, self.band, self.kind = coadd_id, reason, band, kind
        super().__init__(f"tile {coadd_id}{' ' + band if band else ''}: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str | None, FaultKind]]:
        return TileFault, (self.coadd_id, self.reason, self.band, self.kind)


class StoreError(SkyclassError):
    """The run folder or catalogue cannot be written or read."""


class NotPublished(StoreError):
    """There is no class catalogue, or no run, at this path."""

    exit_code = 2


class RunMismatch(StoreError):
    """The output folder belongs to a run with another fingerprint, or to somebody else."""

    exit_code = 2


class LeaseHeld(StoreError):
    """Another driver holds the run folder."""

    exit_code = 2


class LeaseLost(StoreError):
    """Another driver has taken over while this one gave no sign: it must not write any more."""


class CommitConflict(StoreError):
    """Two attempts at one tile gave different bytes: something is not deterministic."""


class PeerLost(SkyclassError):
    """Another rank of a training is gone or does not answer: the cause lies with that rank."""


class RowsLost(SkyclassError):
    """Rows in and rows out differ."""


class Interrupted(SkyclassError):
    """Stopped from outside, by a signal, the cluster or the archive gone, with everything committed so far kept."""

    exit_code = 4


class ClusterLost(Interrupted):
    """The scheduler, or every worker that could do the work, is gone."""


class NotStarted(Interrupted):
    """The local cluster did not start, or the command was stopped before it did: nothing has begun."""


class ArchiveDown(Interrupted):
    """A remote archive does not answer, or refuses to: no fault of a tile, so it stops the run and quarantines nothing.

    `trouble` says what was asked for, how often, and what came of it.
    """

    def __init__(self, url: str, reason: str, attempts: int) -> None:
        self.url, self.reason, self.attempts = url, reason, attempts
        self.trouble = f"{url}: {reason} ({attempts} attempt{'s' if attempts > 1 else ''})"
        super().__init__(
            f"the image archive does not answer: {self.trouble}; committed tiles are kept: run the same command "
            "again when it is back"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, int]]:
        return ArchiveDown, (self.url, self.reason, self.attempts)
