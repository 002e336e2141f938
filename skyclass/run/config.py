"""The configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from ..model.compile_policy import CompileMode
from ..settings import FROM_MAPPING, MAX_INTEGER, build, configuration
from ..sky.regions import Region

MAX_WORKERS = 10_000


def _check_device(device: str) -> str:
    if device.split(":")[0] not in ("auto", "cpu", "cuda"):
        raise ValueError("choose auto, cpu or cuda")
    return device


def _check_cluster(cluster: str) -> str:
    if cluster not in ("local", "none") and "://" not in cluster:
        raise ValueError("choose local, none or an address such as tcp://HOST:8786")
    return cluster


def _check_needs_local_cluster(number: int | None, info: ValidationInfo) -> int | None:
    cluster = info.data.get("cluster", "local")
    if number is not None and cluster != "local":
        raise ValueError(f"the number of workers is that of a local cluster, and cluster is {cluster!r}: leave it out")
    return number


def check_folder(out: str) -> str:
    """Return a folder to write to; raise `ValueError` for a URL."""
    if "://" in out:
        raise ValueError("skyclass writes to a folder of a shared or local disk, not to a URL")
    return out


Precision = Literal["auto", "fp32", "bf16"]
Device = Annotated[str, AfterValidator(_check_device)]
Cluster = Annotated[str, AfterValidator(_check_cluster)]


@configuration(
    "run",
    {
        "catalog": "Input and output",
        "model": "Sources and model",
        "device": "Where and how fast it runs",
        "allow_truncated": "Faulty input",
        "trust_code": "Networks outside of skyclass",
        "prior": "Class shares of the sky",
    },
)
class RunConfig:
    """One classification run: the keys of RUN.toml, and with dashes the options of `skyclass classify`.

    A configuration is frozen and checked when it is made; `ConfigError` lists every problem. The keys
    catalog, images, region, model and precision decide the rows, and compile their last digits; prior decides the
    columns p_<class>_sky beside them, and may change when a run is resumed. The other keys decide where, and how fast,
    skyclass computes them.

    Examples
    --------
    >>> run = RunConfig(catalog="sky/catalog", images="sky/images", out="classes", workers=2)
    >>> run.model
    'iicnet-mock'
    """

    catalog: Annotated[str, Field(min_length=1, examples=["sky/catalog"])]
    """AllWISE partitions (hive folder), a HATS catalogue, or a table of positions with ra and dec in degrees."""
    images: Annotated[str, Field(min_length=1, examples=["sky/images"])]
    """Folder of Atlas tiles, in the layout of the archive or any other, or its address: s3://, https://."""
    out: Annotated[str, Field(min_length=1, examples=["classes"]), AfterValidator(check_folder)]
    """Run folder. The same command with the same folder resumes the run."""
    model: Annotated[str, Field(min_length=1)] = "iicnet-mock"
    """Name of a shipped model bundle, or the folder of a bundle."""
    region: Annotated[
        Annotated[Region, *FROM_MAPPING] | None,
        Field(examples=[{"kind": "cone", "ra": 150.1, "dec": 2.2, "radius": "30arcmin"}]),
    ] = None
    """Part of the sky: skyclass classifies the sources inside, and opens no partition outside. All sources when
    absent."""
    precision: Precision = "auto"
    """Arithmetic of the network. auto: bf16 where the hardware multiplies it, else fp32."""
    device: Device = "auto"
    """Device of each worker: auto, cpu or cuda."""
    compile: CompileMode = "auto"
    """Compile the network: on, off, or auto: where compilation takes less time than it saves."""
    cluster: Cluster = "local"
    """Where the run is computed. local: a cluster on this machine. none: plain Python, without Dask. Else the address
    of a Dask scheduler, such as tcp://127.0.0.1:8786."""
    workers: Annotated[
        int | None, Field(ge=1, le=MAX_WORKERS, examples=[4]), AfterValidator(_check_needs_local_cluster)
    ] = None
    """Number of CPU worker processes of a local cluster; one for each core when absent."""
    memory_limit: str = "3GB"
    """Memory of each worker of a local cluster. Dask restarts a worker that needs more."""
    strip_sources: Annotated[int, Field(ge=1, le=MAX_INTEGER)] = 16_384
    """Largest number of sources in a strip, the unit of work."""
    allow_truncated: bool = False
    """Accept a VOTable that a service cut at its row limit (QUERY_STATUS OVERFLOW)."""
    retry_quarantined: bool = False
    """Repeat tiles that an earlier call quarantined, for example after damaged images were downloaded again."""
    trust_code: bool = False
    """Run the network of a model bundle also where it is code outside of skyclass. Read that code first."""
    prior: Annotated[str, Field(min_length=1)] = "none"
    """Class shares of the sky for the columns p_<class>_sky. none: no such columns. estimate: from the sources of the
    catalogue, in bins of W1 and galactic latitude; use it only for a catalogue that was not selected by colour or
    class. Else a JSON file, or the name of a shipped table."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return vars(self) | {"region": self.region.to_dict() if self.region else None}


def run_config(data: Mapping[str, Any]) -> RunConfig:
    """Return the run that a mapping describes; a `region` may be a dict such as {kind = "cone", ...}."""
    return build(RunConfig, data)
