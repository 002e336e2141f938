"""A model bundle on a device: composites and photometry in, calibrated class probabilities out.

    images (N, C, S, S) float16, NaN = missing; photometry (N, F) float32, NaN = unknown
      micro-batches of one fixed size, the last one padded
      Preprocess      NaN -> 0, resize, normalise     float32
      standardise     (x - mean) / std, NaN -> 0      float32
      network         fused, channels_last, fp32 or bf16; compiled on request
      logits and embedding                            float32 (N, K + W)
      softmax(logits / temperature + bias)            float32 (N, K)

Every micro-batch has the same shape. Therefore the probabilities of a row do not depend on the other rows of a call,
and the rows of a catalogue do not depend on strips, workers, threads and window sizes. On GPUs this holds as long as
the same batch size fits the memory of all of them.
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
from torch import Tensor

from ..errors import BundleError, ConfigError
from ..networks import channels_last
from ..types import DEFAULT_CLASSES, Float16, Float32, FloatArray
from .bundle import Bundle, load_bundle
from .bundle_files import REMEDY
from .compile import Network, compiled
from .devices import resolve_device, resolve_precision
from .inference import InferenceModule
from .network import inference_module, inputs_of_bundle, one_line, require_matching_photometry
from .photometry import standardise
from .preprocess import Preprocess
from .probabilities import refuse_faulty

log = logging.getLogger(__name__)

MICRO_BATCH = {"cpu": 32, "cuda": 1024}
"""Images per pass. On a CPU activations of 32 x 64 x 40 x 40 stay in the cache; a GPU needs many images to be busy."""
SMALLEST_BATCH = 64
TRIAL_BATCH = 16
"""Images per pass of the trial of a model."""
INPUT_DTYPES = {"images": torch.float16, "photometry": torch.float32}
"""Input of a network -> the type in which it is copied to the device."""


class PreparedNetwork(NamedTuple):
    """A network and the batch size that it is prepared for. Threads read both at once: they are replaced together."""

    micro_batch: int
    network: Network


class NetworkClassifier:
    """The network of a bundle on one device. `load_classifier` makes it.

    Several threads may call its methods. On CUDA the batch size is found at the start: a batch that does not
    fit into memory is halved, and later batches have the smaller size.

    Attributes
    ----------
    bundle : Bundle
        The description of the model.
    device : torch.device
        Device of the network.
    precision : str
        "fp32" or "bf16".
    is_compiled : bool
        Whether the network is compiled.
    model_id : str
        Name and digest of the bundle, the content of the column `model_id`.
    width : int
        Numbers of an embedding, 0 for a network without one.
    """

    def __init__(self, bundle: Bundle, device: str, precision: str, compile: bool = False) -> None:
        require_matching_photometry(bundle)
        self.bundle, self.device, self.precision = bundle, torch.device(device), precision
        self.model_id, self.inputs = bundle.model_id, inputs_of_bundle(bundle)
        self.is_on_cuda = self.device.type == "cuda"
        self.is_compiled, self.name = False, f"{bundle.digest} {precision}"
        network = channels_last(inference_module(bundle, precision).to(self.device))
        preprocess = Preprocess(bundle.preprocessing, bundle.cut.size_px).to(self.device)
        self.module = InferenceModule(self.inputs, preprocess, network, bundle.symmetry).eval()
        self.width = self.module.width
        self._check_statistics()
        self.batch_lock = Lock()
        self.prepared = PreparedNetwork(TRIAL_BATCH, self.module)
        self._refuse_faulty()  # before compiling: otherwise NaN would count as a fault of the compiler
        self.is_compiled = compile
        self.prepared = self._prepare_largest(MICRO_BATCH[self.device.type])

    def __repr__(self) -> str:
        how = f"{self.precision}{', compiled' if self.is_compiled else ''}"
        return f"<{type(self).__name__} {self.model_id} on {self.device}, {how}>"

    def predict(self, images: Float16, photometry: Float32 | None = None) -> Float32:
        """Return calibrated class probabilities.

        Parameters
        ----------
        images : (N, C, S, S) float16
            Composites in the bands and with the side S of the cut of the bundle (`bundle.cut.size_px` pixels), NaN
            where a pixel is missing, as `skyclass.images.composite.composite` makes them from cutouts in DN. This
            function resizes them to the input of the network. Leave out images without any pixel in a band (flag
            `NO_IMAGE`), as `classify` does: the network takes them for an empty sky. A network of photometry alone uses
            only the number N of images.
        photometry : (N, F) float32, optional
            Features of the same sources as `skyclass.model.photometry.features` returns them, NaN where unknown. A
            network of images alone ignores them.

        Returns
        -------
        (N, K) float32
            Probabilities in the order of `bundle.classes`; each row has the sum 1.

        Raises
        ------
        ConfigError
            If the composites or the photometry do not fit the bundle.

        Examples
        --------
        >>> import numpy as np
        >>> classifier = load_classifier("iicnet-mock", device="cpu", precision="fp32")
        >>> from skyclass.images.composite import composite
        >>> cutouts = np.random.default_rng(1).normal(5, 1, (2, 3, 37, 37)).astype(np.float32)  # DN
        >>> settings = classifier.bundle.composite
        >>> images = composite(cutouts, settings.zero_point_mag, settings)
        >>> classifier.predict(images).shape
        (2, 3)
        """
        return self.predict_and_embed(images, photometry)[0]

    def predict_and_embed(self, images: Float16, photometry: Float32 | None = None) -> tuple[Float32, Float32]:
        """Return calibrated class probabilities and the embedding of the images, in one pass of the network.

        Parameters and errors are those of `predict`.

        Returns
        -------
        (N, K) float32
            Probabilities, as of `predict`.
        (N, W) float32
            Input of the last layer of the network; W is 0 for a network without an embedding.
        """
        logits, embedding = self._split_outputs(images, photometry)
        return calibrated(logits, self.bundle.temperature, self.bundle.bias), embedding

    def logits(self, images: Float16, photometry: Float32 | None = None) -> Float32:
        """Return the output of the network, before temperature and bias.

        Parameters and errors are those of `predict`.

        Returns
        -------
        (N, K) float32
            Logits in the order of `bundle.classes`.
        """
        return self._split_outputs(images, photometry)[0]

    def _split_outputs(self, images: Float16, photometry: Float32 | None) -> tuple[Float32, Float32]:
        """Return logits (N, K) and embedding (N, W), in batches that fit the memory of the device."""
        inputs = self._checked_inputs(images, photometry)
        while True:
            prepared = self.prepared
            try:
                outputs = self._outputs(inputs, len(images), prepared)
                n_logits = outputs.shape[1] - self.width
                return outputs[:, :n_logits], outputs[:, n_logits:]
            except torch.OutOfMemoryError as error:
                failure = error.with_traceback(None)  # the traceback would keep the memory of the batch allocated
            with self.batch_lock:
                if self.prepared is prepared:  # otherwise another thread has halved the batch already
                    self.prepared = self._prepare_largest(_halved(prepared.micro_batch, failure))

    def _check_statistics(self) -> None:
        """Raise `BundleError` if the statistics of outliers are those of another network."""
        if self.bundle.outliers and self.bundle.outliers.width != self.width:
            raise BundleError(
                f"the bundle at {self.bundle.path} has statistics of {self.bundle.outliers.width} numbers of an "
                f"embedding, and its network {self.bundle.network!r} gives {self.width}: {REMEDY}"
            )

    def _refuse_faulty(self) -> None:
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

    def _checked_inputs(self, images: Float16, photometry: Float32 | None) -> dict[str, FloatArray]:
        """Return the inputs of the network by name, photometry standardised; `ConfigError` if one does not fit."""
        arrays: dict[str, FloatArray] = {}
        if "images" in self.inputs:
            self._check_images(images)
            arrays["images"] = images
        if self.bundle.photometry:
            names = self.bundle.photometry.features
            if photometry is None or photometry.shape != (len(images), len(names)):
                raise ConfigError(
                    f"{self.model_id} takes photometry (N, {len(names)}): {', '.join(names)}, a row for each of "
                    f"{len(images)} images, not {None if photometry is None else photometry.shape}: pass "
                    "photometry.features(rows, bundle.photometry.features)"
                )
            arrays["photometry"] = standardise(photometry, self.bundle.photometry)
        return {name: arrays[name] for name in self.inputs}

    def _check_images(self, images: Float16) -> None:
        cut = self.bundle.cut
        expected, bands = (len(cut.bands), cut.size_px, cut.size_px), ",".join(cut.bands)
        make = "skyclass.images.composite.composite(cutouts, zero_point_mag, bundle.composite)"
        if images.shape[1:] != expected:
            raise ConfigError(
                f"{self.model_id} takes composites (N, {', '.join(map(str, expected))}) of "
                f"{', '.join(cut.bands)}, not {images.shape}: write cutouts of {cut.size_px} pixels with `skyclass "
                f"cutouts --size {cut.size_px}px --bands {bands}`, and make composites of them with {make}; predict "
                f"itself resizes them to the {self.bundle.preprocessing.input_px} pixels of the network"
            )
        if images.dtype != np.float16:  # the file of `skyclass cutouts` holds DN in float32, in the same shape
            raise ConfigError(
                f"{self.model_id} takes composites in float16, not {images.dtype}: make them from cutouts in DN with "
                f"{make}"
            )

    def _prepare_largest(self, size: int) -> PreparedNetwork:
        """Return the network prepared for batches of `size` images, or of the largest half of it that fits."""
        while True:
            try:
                return self._prepare(size)
            except torch.OutOfMemoryError as error:
                failure = error.with_traceback(None)
            size = _halved(size, failure)

    def _prepare(self, size: int) -> PreparedNetwork:
        """Return the network prepared for batches of `size` images; torch.OutOfMemoryError if one does not fit."""
        example = self._example(size)
        network = compiled(self.module, example, self.name) if self.is_compiled else self.module
        if self.is_on_cuda:
            with torch.inference_mode():
                network(*example).cpu()  # waits for the result, and thereby finds out whether the batch fits
        return PreparedNetwork(size, network)

    def _example(self, size: int) -> list[Tensor]:
        """Return a batch of zeros on the device with the shapes and types of the inputs."""
        cut, photometry = self.bundle.cut, self.bundle.photometry
        shapes = {
            "images": (len(cut.bands), cut.size_px, cut.size_px),
            "photometry": (len(photometry.features),) if photometry else (),
        }
        return [
            torch.zeros((size, *shapes[name]), dtype=INPUT_DTYPES[name], device=self.device) for name in self.inputs
        ]

    @torch.inference_mode()
    def _outputs(self, inputs: Mapping[str, FloatArray], n: int, prepared: PreparedNetwork) -> Float32:
        size = prepared.micro_batch
        batches = (
            [_padded(rows[i : i + size], size, INPUT_DTYPES[name], self.is_on_cuda) for name, rows in inputs.items()]
            for i in range(0, n, size)
        )
        outputs = [prepared.network(*self._uploaded(batch)) for batch in batches]
        rows = torch.cat(outputs)[:n] if outputs else torch.empty((0, len(self.bundle.classes) + self.width))
        on_host: Float32 = rows.cpu().numpy()
        return on_host

    def _uploaded(self, batch: list[Tensor]) -> list[Tensor]:
        """Return a batch on the device. A compiled network copies it itself."""
        if not self.is_on_cuda or self.is_compiled:
            return batch
        return [x.to(self.device, non_blocking=True) for x in batch]


class NullClassifier:
    """Probabilities that are a hash of the image: a stand-in for the network in benchmarks.

    A run with it shows the time of cutting and writing alone. Rows are deterministic and differ from source to source;
    they have no meaning.
    """

    model_id = "null"

    def __init__(self, classes: tuple[str, ...] = DEFAULT_CLASSES) -> None:
        self.classes = classes

    def predict(self, images: Float16, photometry: Float32 | None = None) -> Float32:
        """Return (N, K) float32 rows of sum 1, a hash of the bytes of each composite (N, C, S, S)."""
        bits = np.ascontiguousarray(images, dtype=np.float16).view(np.uint16).reshape(len(images), -1)
        total = bits.sum(axis=1, dtype=np.uint64)[:, None]
        mixed = (total + np.arange(1, 1 + len(self.classes), dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        weights = ((mixed >> np.uint64(40)) + np.uint64(1)).astype(np.float64)
        probabilities: Float32 = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        return probabilities

    def predict_and_embed(self, images: Float16, photometry: Float32 | None = None) -> tuple[Float32, Float32]:
        """Return the rows of `predict`, and an embedding (N, 0) without numbers."""
        return self.predict(images, photometry), np.zeros((len(images), 0), np.float32)


def calibrated(logits: Float32, temperature: float, bias: tuple[float, ...]) -> Float32:
    """Return probabilities (N, K) float32, softmax(logits / temperature + bias), for logits (N, K).

    The temperature sets how confident the probabilities are, and the bias shifts them between the classes
    (bias-corrected temperature scaling, Alexandari et al. 2020, ICML).
    """
    scaled = torch.from_numpy(logits) / temperature + torch.tensor(bias, dtype=torch.float32)
    probabilities: Float32 = torch.softmax(scaled, dim=1).numpy()
    return probabilities


def load_classifier(
    model: str | Path | Bundle,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    trust_code: bool = False,
) -> NetworkClassifier:
    """Return the classifier of a model bundle on a device.

    Parameters
    ----------
    model : str, Path or Bundle
        Name of a shipped model, folder of a bundle, or a `Bundle`.
    device : str
        "auto" (CUDA if there is a device), "cpu", "cuda" or "cuda:N".
    precision : str
        "fp32", "bf16", or "auto": bf16 where the hardware multiplies it, else fp32.
    compile : bool
        Compile the network for the device. On a CPU this takes a C++ compiler and a quarter of a minute, once; the
        program is kept in the user's cache.
    trust_code : bool
        Accept a bundle whose network is code outside of skyclass, named by an import path; see `load_bundle`. A
        `Bundle` is taken as trusted.

    Returns
    -------
    NetworkClassifier
        Its `predict` maps composites to class probabilities.

    Raises
    ------
    BundleError
        If the bundle is missing or damaged, needs code that is not trusted, missing or changed, or its network gives
        no probabilities.
    ConfigError
        If the device or the precision is unknown or absent.
    CannotCompile
        If `compile` is set and the network cannot be compiled on this machine.

    Examples
    --------
    >>> load_classifier("iicnet-mock", device="cpu", precision="fp32")
    <NetworkClassifier iicnet-mock-d096936fec77 on cpu, fp32>
    """
    bundle = model if isinstance(model, Bundle) else load_bundle(model, trust_code=trust_code)
    device = resolve_device(device)
    return NetworkClassifier(bundle, device, resolve_precision(device, precision), compile)


@lru_cache(maxsize=4)
def cached_classifier(
    path: str,
    digest: str,
    device: str = "auto",
    precision: str = "auto",
    compile: bool = False,
    trust_code: bool = False,
) -> NetworkClassifier:
    """Return the classifier of the bundle at `path`, loaded once per process; `BundleError` if not of `digest`.

    A worker receives the path and the digest, never the network.
    """
    return load_classifier(load_bundle(path, digest, trust_code), device, precision, compile)


def _halved(size: int, error: torch.OutOfMemoryError) -> int:
    """Return half of a batch size; raise `error` if that is below `SMALLEST_BATCH`."""
    if size // 2 < SMALLEST_BATCH:
        raise error
    torch.cuda.empty_cache()
    log.warning("out of GPU memory: continuing with batches of %d images", size // 2)
    return size // 2


def _padded(rows: FloatArray, size: int, dtype: torch.dtype, pinned: bool) -> Tensor:
    """Return a tensor (size, ...) that begins with `rows` and continues with zeros.

    The copy also avoids warnings of torch about read-only arrays, which arrays from other processes are. A copy from
    pinned memory to the device runs while this thread fills the next batch; torch reuses pinned memory after the copy.
    """
    batch = torch.empty((size, *rows.shape[1:]), dtype=dtype, pin_memory=pinned)
    batch.numpy()[: len(rows)] = rows
    batch[len(rows) :] = 0
    return batch
