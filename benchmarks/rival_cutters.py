"""From tile files to pixels for a network: skyclass, numpy, astropy and Cutana."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd

from skyclass.images.composite import ATLAS_NOISE_DN
from skyclass.run.stages import cut_strip

from .field import BANDS, SIZE_PX, Contestant, Field, has


def cutters(field: Field, n_loop: int, n_cutana: int) -> list[Contestant]:
    """Return the contestants that cut on one core, with the catalogue in memory."""
    settings = "float16, sky subtracted, asinh, flags"
    contestants = [
        Contestant("skyclass", lambda: cut_with_skyclass(field), settings),
        Contestant("numpy, the same", lambda: cut_with_numpy(field, sky_and_asinh), "sky, asinh, float16, no flags"),
        Contestant("numpy, lupton", lambda: cut_with_numpy(field, lupton_uint8), "float32 -> Lupton uint8, dropped"),
        Contestant("numpy", lambda: cut_with_numpy(field, None), "float32, no composite, cutouts dropped"),
        Contestant("Cutout2D, lupton", lambda: cut_with_astropy(field, n_loop), f"a loop over {n_loop} sources, uint8"),
    ]
    if has("cutana"):
        for name, method, kind in (("Cutana, asinh", "asinh", "uint8"), ("Cutana", "none", "float32")):
            settings = f"direct, 2,000 at a time, {method}, {kind}, first {n_cutana} sources"
            contestants.append(
                Contestant(name, lambda m=method, k=kind: cut_with_cutana(field, n_cutana, m, k), settings)
            )  # type: ignore[misc]
    return contestants


def cut_with_skyclass(field: Field) -> float:
    """Cut by strips with the function of the engine."""
    return sum(len(cut_strip(field.context, strip).source_id) for strip in field.strips)


def cut_with_numpy(field: Field, composite: Callable[[np.ndarray], np.ndarray] | None) -> float:
    """Cut with numpy: read, swap bytes, pad, slice in blocks, stretch in blocks."""
    from astropy.io import fits
    from astropy.wcs import WCS

    half = SIZE_PX // 2
    with fits.open(field.paths[0]) as first:
        x, y = WCS(first[0].header).all_world2pix(field.rows["ra"], field.rows["dec"], 0)
    cube = np.stack([np.pad(fits.getdata(p).astype(np.float32), SIZE_PX, constant_values=np.nan) for p in field.paths])
    left, low = (np.round(v).astype(int) - half + SIZE_PX for v in (x, y))
    for start in range(0, len(x), 256):
        block = slice(start, start + 256)
        stamps = np.stack(
            [cube[:, j : j + SIZE_PX, i : i + SIZE_PX] for i, j in zip(left[block], low[block], strict=True)]
        )
        if composite:
            composite(stamps)
    return len(x)


def sky_and_asinh(stamps: np.ndarray, border: int = 3) -> np.ndarray:
    """Return (N, 3, S, S) float16 like the engine: minus the median of the border, arcsinh of x / softening."""
    frame = np.ones(stamps.shape[-2:], bool)
    frame[border:-border, border:-border] = False
    sky = np.nanmedian(stamps[:, :, frame], axis=-1)[..., None, None]
    softening = np.array([ATLAS_NOISE_DN[band] for band in BANDS], np.float32)[:, None, None]
    return np.arcsinh((stamps - sky) / softening).astype(np.float16)


def lupton_uint8(stamps: np.ndarray, stretch: float = 5.0, q: float = 8.0) -> np.ndarray:
    """Return (N, 3, S, S) uint8 after Lupton et al. 2004 for (N, 3, S, S)."""
    intensity = stamps.mean(axis=1, keepdims=True)
    factor = np.arcsinh(q * intensity / stretch) / (q * np.where(intensity == 0, 1, intensity))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN beyond the edge
        return np.clip(255 * stamps * factor, 0, 255).astype(np.uint8)


def cut_with_astropy(field: Field, n: int) -> float:
    """Cut as in a first script: a loop with three `Cutout2D` and `make_lupton_rgb` for each source."""
    for _ in astropy_stamps(field, n):
        pass
    return n


def astropy_stamps(field: Field, n: int) -> Iterator[np.ndarray]:
    """Give the RGB image (S, S, 3) uint8 of each of the first n sources."""
    from astropy.coordinates import SkyCoord
    from astropy.io import fits
    from astropy.nddata import Cutout2D
    from astropy.visualization import make_lupton_rgb
    from astropy.wcs import WCS

    with ExitStack() as stack:
        files = [stack.enter_context(fits.open(path)) for path in field.paths]
        images, wcs = [file[0].data for file in files], WCS(files[0][0].header)
        for ra, dec in field.rows[["ra", "dec"]].head(n).to_numpy():
            position = SkyCoord(ra, dec, unit="deg")
            stamps = [Cutout2D(i, position, SIZE_PX, wcs=wcs, mode="partial", fill_value=0).data for i in images]
            yield make_lupton_rgb(*stamps[::-1], stretch=5, Q=8)


def cut_with_cutana(field: Field, n: int, method: str, kind: str) -> float:
    """Cut with the fastest interface of Cutana: in process, 2,000 sources at a time."""
    import cutana

    config = cutana.get_default_config()
    config.target_resolution, config.data_type, config.normalisation_method = SIZE_PX, kind, method
    config.apply_flux_conversion, config.process_threads, config.skip_fits_check = False, 1, True
    config.write_to_disk, config.max_workers = False, 1
    names = [Path(path).stem for path in field.paths]
    config.channel_weights = {name: [float(i == j) for j in range(3)] for i, name in enumerate(names)}
    config.selected_extensions = [{"name": name, "ext": "PRIMARY"} for name in names]
    rows = field.rows.head(n)
    table = pd.DataFrame({"SourceID": rows["source_id"], "RA": rows["ra"], "Dec": rows["dec"]})
    table["diameter_pixel"], table["fits_file_paths"] = SIZE_PX, [str(list(field.paths))] * len(table)
    n_cut = 0
    for start in range(0, n, 2_000):
        for batch in cutana.create_cutouts_direct(table.iloc[start : start + 2_000], config, max_workers=1):
            n_cut += len(batch["cutouts"])
    return n_cut
