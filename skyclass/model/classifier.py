"""A model bundle on a device: composites and photometry in, calibrated class probabilities out.

    images (N, C, S, S) float16, NaN = missing; photometry (N, F) float32, NaN = unknown
      micro-batches of one fixed size, the last one padded
      Preprocess      NaN -> 0, resize, normalise     float32
      standardise     (x - mean) / std, NaN -> 0      float32
      network         fused, channels_last, fp32 or bf16; compiled on request
      logits                                          float32 (N, 3)
      softmax(logits / temperature + bias)            float32 (N, 3)

Every micro-batch has the same shape, so the probabilities of a row do not depend on which rows stand
beside it: strips, workers, threads and window sizes leave no trace in a catalogue (on GPUs, as long as a batch fits
all of them alike).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BundleError, ConfigError
from ..networks import INPUTS, build, channels_last, fuse, to_bf16
from ..types import CLASSES, Float16, Float32, FloatArray
from .bundle import REMEDY, Bundle, Preprocessing, load_bundle, load_weights
from .compile import Network, compiled
from .photometry import standardise
from .probabilities import refuse_faulty

log = logging.getLogger(__name__)

MICRO_BATCH = {"cpu": 32, "cuda": 1024}
"""Images per pass: on a CPU few, so that 64 x 40 x 40 activations stay in cache; on a GPU many."""
SMALLEST_BATCH = 64
TRIAL_BATCH = 16
"""Images per pass of the trial of a model."""
FLOAT16_MAX = 65504.0
PRECISIONS = ("auto", "fp32", "bf16")
ON_THE_WIRE = {"images": torch.float16, "photometry": torch.float32}
"""Input of a network -> the type in which it travels to the device."""


class Preprocess(nn.Module):
    """Network input (N, C, P, P) float32, channels_last, from composites (N, C, S, S) float16.

    Missing pixels (NaN) become 0, the sky level; then bilinear resize to `input_px`, then (x - mean) / std.
    Training and inference share it. Every step is a plain sum, product or quotient, so the result is the same
    to the last bit for any batch, number of threads and device; torch's own resize is not.

    With `size_px`, the side of the composites to come, where they are sampled is worked out once, not for each batch.
    """

    mean: Tensor
    std: Tensor
    low: Tensor | None
    high: Tensor | None
    weight: Tensor | None

    def __init__(self, settings: Preprocessing, size_px: int | None = None) -> None:
        super().__init__()
        self.input_px, self.size_px = settings.input_px, size_px
        known = sampling(size_px, self.input_px) if size_px else (None, None, None)
        for name, values in zip(("low", "high", "weight"), known, strict=True):
            self.register_buffer(name, values)
        self.register_buffer("mean", torch.tensor(settings.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(settings.std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.nan_to_num(images.float(), nan=0.0, posinf=FLOAT16_MAX, neginf=-FLOAT16_MAX)
        if x.shape[-1] != self.input_px:
            if self.low is None or self.high is None or self.weight is None or x.shape[-1] != self.size_px:
                x = resize(x, *sampling(x.shape[-1], self.input_px, x.device))
            else:
                x = resize(x, self.low, self.high, self.weight)
        x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return x.contiguous(memory_format=torch.channels_last)


def sampling(size_px: int, px: int, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of `px` pixels that make up a side which two of `size_px` it lies between, and its share of the
    second: bilinear, as with align_corners=False.
    """
    place = ((torch.arange(px, dtype=torch.float64, device=device) + 0.5) * size_px / px - 0.5).clamp(0)
    low = place.floor().long()
    return low, (low + 1).clamp(max=size_px - 1), (place - low).float()


def resize(images: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Return images (N, C, S, S) float32 sampled anew, both ways as `sampling` says."""
    rows = weight[:, None]
    x = images[:, :, low].mul_(1 - rows).add_(images[:, :, high].mul_(rows))
    return x[..., low].mul_(1 - weight).add_(x[..., high].mul_(weight))


class Graph(nn.Module):
    """Logits (N, 3) float32 from a batch as it travels (`ON_THE_WIRE`): all that is done for an image, in one piece."""

    def __init__(self, inputs: tuple[str, ...], preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.inputs, self.preprocess, self.network = inputs, preprocess, network
        self.dtype = next(p.dtype for p in network.parameters())

    def forward(self, *batch: Tensor) -> Tensor:
        ready = {"images": lambda x: self.preprocess(x).to(self.dtype), "photometry": lambda x: x}
        logits: Tensor = self.network(*(ready[name](x) for name, x in zip(self.inputs, batch, strict=True)))
        return logits.float()


class Ready(NamedTuple):
    """A network and the size of batch it is ready for: they change together, under the eyes of other threads."""

    micro_batch: int
    network: Network


class NetworkClassifier:
    """The network of a bundle on one device; `load_classifier` makes it.

    `predict` and `logits` may be called from several threads. On CUDA the size of a batch is found at start: one that
    does not fit is halved, and stays so.
    """

    def __init__(self, bundle: Bundle, device: str, precision: str, compile: bool = False) -> None:
        self.bundle, self.device, self.precision = bundle, torch.device(device), precision
        self.model_id = bundle.model_id
        self.inputs = _inputs(bundle)
        self.is_on_cuda = self.device.type == "cuda"
        self.is_compiled, self.name = False, f"{bundle.digest} {precision}"
        network = fuse(_network(bundle)).to(self.device)
        network = channels_last(to_bf16(network) if precision == "bf16" else network)
        preprocess = Preprocess(bundle.preprocessing, bundle.cut.size_px).to(self.device)
        self.graph = Graph(self.inputs, preprocess, network).eval()
        self.halving = Lock()
        self.ready = Ready(TRIAL_BATCH, self.graph)
        self._try()  # before it is compiled: NaN would count as a fault of the compiler
        self.is_compiled = compile
        self.ready = self._prepared(MICRO_BATCH[self.device.type])

    def _try(self) -> None:
        """Raise `BundleError` unless the network gives probabilities for the trial composites."""
        try:
            refuse_faulty(self.bundle, self.predict)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise BundleError(
                f"network {self.bundle.network!r} of {self.bundle.path} fails on composites of its own bundle "
                f"({one_line(error)}): {REMEDY}"
            ) from error

    def predict(self, images: Float16, photometry: Float32 | None = None) -> Float32:
        """Return (N, 3) float32 probabilities in the order of `CLASSES` for composites (N, C, S, S).

        `photometry` (N, F) are the bundle's features of the same sources as `photometry.features` gives them, NaN
        where unknown; a network that takes images alone leaves them aside, and one that takes photometry alone
        heeds the number of images only. Rows sum to 1. What does not fit the bundle raises `ConfigError`.
        """
        return calibrated(self.logits(images, photometry), self.bundle.temperature, self.bundle.bias)

    def logits(self, images: Float16, photometry: Float32 | None = None) -> Float32:
        """Return (N, 3) float32 logits of the network, before temperature and bias; otherwise like `predict`."""
        given = self._given(images, photometry)
        while True:
            ready = self.ready
            try:
                return self._logits(given, len(images), ready)
            except torch.OutOfMemoryError as error:
                failed = error.with_traceback(None)  # or it holds what the batch has allocated
            with self.halving:
                if self.ready is ready:  # no other thread has halved it already
                    self.ready = self._prepared(_halved(ready.micro_batch, failed))

    def _given(self, images: Float16, photometry: Float32 | None) -> dict[str, FloatArray]:
        """Return what the network takes, by name, photometry standardised; `ConfigError` when it does not fit."""
        given: dict[str, FloatArray] = {}
        if "images" in self.inputs:
            self._check(images)
            given["images"] = images
        if self.bundle.photometry:
            names = self.bundle.photometry.features
            if photometry is None or photometry.shape != (len(images), len(names)):
                raise ConfigError(
                    f"{self.model_id} takes photometry (N, {len(names)}): {', '.join(names)}, a row for each of "
                    f"{len(images)} images, not {None if photometry is None else photometry.shape}: pass "
                    "photometry.features(rows, bundle.photometry.features)"
                )
            given["photometry"] = standardise(photometry, self.bundle.photometry)
        return {name: given[name] for name in self.inputs}

    def _prepared(self, size: int) -> Ready:
        """Return the network ready for batches of `size`, or of as many as there is memory for."""
        while True:
            try:
                return self._tried(size)
            except torch.OutOfMemoryError as error:
                failed = error.with_traceback(None)
            size = _halved(size, failed)

    def _tried(self, size: int) -> Ready:
        """Return the network ready for batches of `size`; torch.OutOfMemoryError if one does not fit now."""
        example = self._example(size)
        network = compiled(self.graph, example, self.name) if self.is_compiled else self.graph
        if self.is_on_cuda:
            with torch.inference_mode():
                network(*example).cpu()  # waits for it
        return Ready(size, network)

    @torch.inference_mode()
    def _logits(self, given: Mapping[str, FloatArray], n: int, ready: Ready) -> Float32:
        size = ready.micro_batch
        batches = (
            [_padded(rows[i : i + size], size, ON_THE_WIRE[name], self.is_on_cuda) for name, rows in given.items()]
            for i in range(0, n, size)
        )
        logits = [ready.network(*self._uploaded(batch)) for batch in batches]
        rows = torch.cat(logits)[:n] if logits else torch.empty((0, len(self.bundle.classes)))
        on_host: Float32 = rows.cpu().numpy()
        return on_host

    def _uploaded(self, batch: list[Tensor]) -> list[Tensor]:
        """Return a batch where the network takes it from: a compiled one fetches it itself."""
        if not self.is_on_cuda or self.is_compiled:
            return batch
        return [x.to(self.device, non_blocking=True) for x in batch]

    def _example(self, size: int) -> list[Tensor]:
        """Return a batch without content on the device, in the shapes and types of those to come."""
        cut, wanted = self.bundle.cut, self.bundle.photometry
        shapes = {
            "images": (len(cut.bands), cut.size_px, cut.size_px),
            "photometry": (len(wanted.features),) if wanted else (),
        }
        return [torch.zeros((size, *shapes[name]), dtype=ON_THE_WIRE[name], device=self.device) for name in self.inputs]

    def _check(self, images: Float16) -> None:
        cut = self.bundle.cut
        expected = (len(cut.bands), cut.size_px, cut.size_px)
        if images.shape[1:] != expected:
            raise ConfigError(
                f"{self.model_id} takes composites (N, {', '.join(map(str, expected))}) of "
                f"{', '.join(cut.bands)}, not {images.shape}: cut with the bundle's settings"
            )


class NullClassifier:
    """Probabilities that follow from the image's bytes alone, without a network: a stand-in for benchmarks.

    It takes the inference stage out of a run, so that what is left is the time of cutting and writing. Rows
    are deterministic and differ from source to source; they mean nothing.
    """

    model_id = "null"

    def predict(self, images: Float16, photometry: Float32 | None = None) -> Float32:
        """Return (N, 3) float32 rows that sum to 1, a hash of the bytes of each composite (N, C, S, S)."""
        bits = np.ascontiguousarray(images, dtype=np.float16).view(np.uint16).reshape(len(images), -1)
        total = bits.sum(axis=1, dtype=np.uint64)[:, None]
        mixed = (total + np.arange(1, 1 + len(CLASSES), dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        weights = ((mixed >> np.uint64(40)) + np.uint64(1)).astype(np.float64)
        probabilities: Float32 = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        return probabilities


def calibrated(logits: Float32, temperature: float, bias: tuple[float, ...]) -> Float32:
    """Return probabilities (N, K) float32, softmax(logits / temperature + bias), for logits (N, K).

    A temperature spreads confidence, and the bias moves it between the classes (bias-corrected temperature
    scaling, Alexandari et al. 2020, ICML).
    """
    scaled = torch.from_numpy(logits) / temperature + torch.tensor(bias, dtype=torch.float32)
    probabilities: Float32 = torch.softmax(scaled, dim=1).numpy()
    return probabilities


def load_classifier(
    model: str | Path | Bundle, device: str = "auto", precision: str = "auto", compile: bool = False
) -> NetworkClassifier:
    """Return the classifier of a bundle, given as a shipped name, a folder or a `Bundle`.

    `device`: auto (CUDA if there is one), cpu, cuda or cuda:N. `precision`: auto, fp32 or bf16. With `compile` the
    network is compiled for the device.
    Raises `BundleError` for a damaged bundle, `ConfigError` for an unknown or absent device or precision,
    `CannotCompile` without a compiler.
    """
    bundle = model if isinstance(model, Bundle) else load_bundle(model)
    device = resolve_device(device)
    return NetworkClassifier(bundle, device, resolve_precision(device, precision), compile)


@lru_cache(maxsize=4)
def cached_classifier(
    path: str, digest: str, device: str = "auto", precision: str = "auto", compile: bool = False
) -> NetworkClassifier:
    """Return the classifier of the bundle at `path`, loaded once a process; `BundleError` if not `digest`.

    What crosses to a worker is the path and the digest, never the network.
    """
    return load_classifier(load_bundle(path, digest), device, precision, compile)


def resolve_device(device: str) -> str:
    """Return cpu, cuda or cuda:N; auto takes CUDA when there is one. Raises `ConfigError`."""
    if device == "auto":
        return "cuda" if cuda_is_there() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"device = {device!r}: choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        n = torch.cuda.device_count()
        raise ConfigError(f"device = {device!r}: torch sees {n} CUDA devices; choose cpu")
    return device


def cuda_is_there() -> bool:
    """Return whether torch sees a CUDA device in this process."""
    return torch.cuda.is_available()


def resolve_precision(device: str, precision: str) -> str:
    """Return fp32 or bf16; auto takes bf16 where the hardware multiplies it, else fp32. Raises `ConfigError`.

    That is CUDA from compute capability 8.0 and CPUs with AVX512-BF16 or AMX.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision = {precision!r}: choose {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.11 does not tell
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def set_threads(n: int) -> None:
    """Let torch use `n` CPU threads in this process. Nothing is set on import."""
    torch.set_num_threads(max(1, n))


def _inputs(bundle: Bundle) -> tuple[str, ...]:
    """Return what the network takes; `BundleError` when the bundle does not describe it."""
    inputs = INPUTS.get(bundle.network, ("images",))
    if ("photometry" in inputs) != (bundle.photometry is not None):
        has = "photometry settings" if bundle.photometry else "no photometry settings"
        raise BundleError(
            f"the bundle at {bundle.path} has {has}, but its network {bundle.network!r} takes "
            f"{' and '.join(inputs)}: train it again with `skyclass train`"
        )
    return inputs


def _network(bundle: Bundle) -> nn.Module:
    """Return the network with its weights, as wide as the features are many."""
    weights = load_weights(bundle)
    with torch.device("meta"):  # shapes alone: wrong options could ask for more memory than there is
        wanted = _built(bundle).state_dict()
    if problems := _weight_problems(weights, wanted):
        raise BundleError(
            f"the weights of {bundle.path} do not fit network {bundle.network!r}: {'; '.join(problems[:5])}: {REMEDY}"
        )
    if spoiled := [name for name, values in weights.items() if not values.isfinite().all()]:
        raise BundleError(
            f"the weights of {bundle.path} are unusable: NaN or infinite numbers in {', '.join(spoiled[:5])}: {REMEDY}"
        )
    network = _built(bundle)
    network.load_state_dict(weights)
    return network.eval()


def _built(bundle: Bundle) -> nn.Module:
    """Return the network of a bundle without its weights; `BundleError` for a network or options that do not exist."""
    width = {"features": len(bundle.photometry.features)} if bundle.photometry else {}
    try:
        return build(bundle.network, **bundle.network_options | width)
    except (ConfigError, TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise BundleError(
            f"the bundle at {bundle.path} describes no network: {bundle.network!r} with {bundle.network_options}: "
            f"{one_line(error)}"
        ) from error


def _weight_problems(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return what keeps weights from being those of a network with the state `wanted`."""
    problems = [f"{name} is missing" for name in wanted if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in wanted]
    for name in (name for name in wanted if name in weights):
        there, needed = weights[name], wanted[name]
        if there.shape != needed.shape or there.is_floating_point() != needed.is_floating_point():
            problems.append(f"{name} is {tuple(there.shape)} {there.dtype}, not {tuple(needed.shape)} {needed.dtype}")
    return problems


def one_line(error: Exception) -> str:
    """Return the message of an error of torch in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _halved(size: int, error: torch.OutOfMemoryError) -> int:
    """Return half a batch after it did not fit; the error again when less would not be worth it."""
    if size // 2 < SMALLEST_BATCH:
        raise error
    torch.cuda.empty_cache()
    log.warning("out of GPU memory: continuing with batches of %d images", size // 2)
    return size // 2


def _padded(rows: FloatArray, size: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Return a tensor (size, ...) that starts with `rows`; the rest is 0.

    The copy also spares torch the read-only arrays that come over the wire. Pinned, it goes to the device while this
    thread fills the next; torch keeps such memory and gives it out again when its copy is done.
    """
    batch = torch.empty((size, *rows.shape[1:]), dtype=dtype, pin_memory=pinned)
    batch.numpy()[: len(rows)] = rows
    batch[len(rows) :] = 0
    return batch
