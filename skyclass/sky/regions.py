"""Regions of the sky: the positions that they contain, and the HEALPix pixels that cover them.

The covers are computed here and not by a library: `MOC.from_zone` of mocpy 0.21 loses pixels that contain positions of
a box, and `MOC.from_polygon` loses pixels along meridians that are pixel borders.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from operator import index
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from ..types import Bool, Float64, Int64
from .healpix import (
    MAX_ORDER,
    ROUNDING_DEG,
    angle_text,
    checked_degrees,
    healpix,
    parse_angle,
    pixel_centres,
    pixel_radius_deg,
    separation_deg,
    unit_vectors,
)
from .moc import read_moc

REFINED_PIXELS = 64
"""A cover of at most this many pixels is made tighter by a search three orders deeper."""


def _descend(order: int, touches: Callable[[Float64, Float64, float], Bool]) -> Int64:
    """Return the sorted pixels of `order` that remain when `touches(ra, dec, radius)` prunes every level."""
    pixels = np.arange(12, dtype=np.int64)
    depth = order
    for level in range(min(order + 3, MAX_ORDER) + 1):
        if level > order and len(pixels) > REFINED_PIXELS * 4 ** (level - order - 1):
            break
        if level:
            pixels = (pixels[:, None] * 4 + np.arange(4)).ravel()
        pixels = pixels[touches(*pixel_centres(level, pixels), pixel_radius_deg(level))]
        depth = max(order, level)
    return np.unique(pixels >> (2 * (depth - order)))


def _set(region: object, **values: object) -> None:
    """Set fields of a frozen dataclass during its construction."""
    for name, value in values.items():
        object.__setattr__(region, name, value)


@runtime_checkable
class Region(Protocol):
    """A part of the sky: `Cone`, `Box`, `Polygon`, `Pixels` or `Moc`."""

    def __hash__(self) -> int:
        """Return equal numbers for equal regions: regions are keys of caches."""
        ...

    def contains(self, ra: ArrayLike, dec: ArrayLike) -> Bool:
        """Return True for each position (degrees) inside the region."""
        ...

    def cover(self, order: int) -> Int64:
        """Return the sorted NESTED pixels of `order` that cover the region; some may lie outside."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return plain values from which `region_from_dict` makes an equal region."""
        ...


@dataclass(frozen=True)
class Cone:
    """A circle on the sky; its border belongs to it.

    Parameters
    ----------
    ra, dec : float
        Centre, ICRS, in degrees.
    radius : float or str
        Radius in degrees, or with a unit, such as "30arcmin"; above 0 and at most 180 degrees.

    Raises
    ------
    ConfigError
        A value is no number or out of range.

    Examples
    --------
    >>> cone = Cone(150.1, 2.2, "30arcmin")
    >>> cone.contains([150.2, 151.0], [2.2, 2.2]).tolist()
    [True, False]
    """

    ra: float
    dec: float
    radius: InitVar[str | float]
    radius_deg: float = field(init=False)

    def __post_init__(self, radius: str | float) -> None:
        ra, dec = checked_degrees(self.ra, "cone ra", -360, 360), checked_degrees(self.dec, "cone dec", -90, 90)
        radius_deg = parse_angle(radius)
        if not 0 < radius_deg <= 180:
            raise ConfigError(f"cone radius is {radius!r}: it must be above 0 and at most 180 degrees")
        _set(self, ra=ra, dec=dec, radius_deg=radius_deg)

    def contains(self, ra: ArrayLike, dec: ArrayLike) -> Bool:
        return separation_deg(self.ra, self.dec, ra, dec) <= self.radius_deg

    def cover(self, order: int) -> Int64:
        def touches(ra: Float64, dec: Float64, pixel_deg: float) -> Bool:
            return separation_deg(self.ra, self.dec, ra, dec) <= self.radius_deg + pixel_deg

        return _descend(order, touches)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "cone", "ra": self.ra, "dec": self.dec, "radius": self.radius_deg}


@dataclass(frozen=True)
class Box:
    """A range of RA and Dec; its borders belong to it.

    RA runs eastwards from `ra_min` to `ra_max`: 350 to 10 contains RA 0, and 0 to 360 is the whole circle.

    Parameters
    ----------
    ra_min, ra_max, dec_min, dec_max : float
        Limits, ICRS, in degrees.

    Raises
    ------
    ConfigError
        A limit is no number or out of range, or the box is empty.

    Examples
    --------
    >>> Box(350, 10, -5, 5).contains([0, 20], [0, 0]).tolist()
    [True, False]
    """

    ra_min: float
    ra_max: float
    dec_min: float
    dec_max: float

    def __post_init__(self) -> None:
        ras = {name: checked_degrees(getattr(self, name), f"box {name}", -360, 360) for name in ("ra_min", "ra_max")}
        decs = {name: checked_degrees(getattr(self, name), f"box {name}", -90, 90) for name in ("dec_min", "dec_max")}
        _set(self, **ras, **decs)
        if self.dec_min >= self.dec_max:
            limits = f"dec_min {self.dec_min:g} and dec_max {self.dec_max:g}"
            raise ConfigError(f"box has {limits}: dec_min must be smaller")
        if self.ra_min == self.ra_max:
            raise ConfigError(f"box ra_min and ra_max are both {self.ra_min:g}: the box is empty")

    @property
    def width_deg(self) -> float:
        """Extent in RA, degrees, in (0, 360]."""
        return 360.0 if self.ra_max - self.ra_min >= 360 else (self.ra_max - self.ra_min) % 360.0 or 360.0

    def contains(self, ra: ArrayLike, dec: ArrayLike) -> Bool:
        ra, dec = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
        east_deg = np.mod(ra - self.ra_min, 360.0)
        # A position on the border may round to just below 360 or just above the width.
        in_ra = (east_deg <= self.width_deg) | (ra == self.ra_min) | (ra == self.ra_max)
        return cast(Bool, in_ra & (dec >= self.dec_min) & (dec <= self.dec_max))

    def cover(self, order: int) -> Int64:
        half_deg = self.width_deg / 2

        def touches(ra: Float64, dec: Float64, pixel_deg: float) -> Bool:
            off_deg = np.abs(np.mod(ra - self.ra_min - half_deg + 180.0, 360.0) - 180.0)
            # A circle of radius r at dec spans asin(sin r / cos dec) in RA; near a pole, all of RA.
            polar = np.abs(dec) + pixel_deg >= 90
            ratio = np.sin(np.radians(pixel_deg)) / np.cos(np.radians(np.where(polar, 0.0, dec)))
            span_deg = np.where(polar, 180.0, np.degrees(np.arcsin(np.minimum(ratio, 1.0))))
            in_dec = (dec >= self.dec_min - pixel_deg) & (dec <= self.dec_max + pixel_deg)
            return in_dec & (off_deg <= half_deg + span_deg + ROUNDING_DEG)

        return _descend(order, touches)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "box", "ra_min": self.ra_min, "ra_max": self.ra_max,
                "dec_min": self.dec_min, "dec_max": self.dec_max}  # fmt: skip


@dataclass(frozen=True)
class Polygon:
    """A polygon whose edges are great circles.

    The inside is the side that fits in a circle of 89 degrees around the mean vertex. Where edges cross each other,
    the even-odd rule decides.

    Parameters
    ----------
    vertices : tuple of (float, float)
        Three or more (ra, dec), ICRS, in degrees, in either sense.

    Raises
    ------
    ConfigError
        A vertex is out of range, or the polygon has no area or is too large.

    Examples
    --------
    >>> Polygon(((359, -1), (1, -1), (0, 1))).contains([0, 5], [0, 0]).tolist()
    [True, False]
    """

    vertices: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        pairs = [tuple(np.asarray(v, dtype=object).ravel()) for v in self.vertices]
        if any(len(pair) != 2 for pair in pairs):
            raise ConfigError(f"polygon vertices must be (ra, dec) pairs in degrees, got {self.vertices!r}")
        vertices = tuple(
            (checked_degrees(ra, "polygon ra", -360, 360), checked_degrees(dec, "polygon dec", -90, 90))
            for ra, dec in pairs
        )
        _set(self, vertices=vertices[:-1] if len(vertices) > 3 and vertices[0] == vertices[-1] else vertices)
        if len(set(self.vertices)) < 3:
            raise ConfigError(f"polygon has {len(set(self.vertices))} distinct vertices: it needs 3 or more")
        self._check_size()

    def _check_size(self) -> None:
        corners = self._corners()
        centre = self._centre()
        if np.linalg.norm(centre) < 0.5 or (corners @ centre).min() < np.cos(np.radians(89.0)):
            raise ConfigError(
                f"polygon of {len(corners)} vertices does not fit in a circle of 89 degrees: "
                "split it, or use a Box or Cone"
            )
        x, y = self._plane(corners)
        if abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) < 1e-16:
            raise ConfigError("polygon has no area: its vertices lie on one great circle")

    def _corners(self) -> Float64:
        return unit_vectors([v[0] for v in self.vertices], [v[1] for v in self.vertices])

    def _centre(self) -> Float64:
        total = self._corners().sum(axis=0)
        length = np.linalg.norm(total)
        return cast(Float64, total / length if length > 1e-9 else total)

    def _plane(self, vectors: Float64) -> tuple[Float64, Float64]:
        """Return the gnomonic projection (x, y) of unit vectors about the mean vertex: great circles are straight.

        Points behind the plane are mirrored; the caller removes them.
        """
        centre = self._centre()
        farthest_axis = np.eye(3)[np.argmin(np.abs(centre))]
        east = np.cross(farthest_axis, centre)
        east /= np.linalg.norm(east)
        along = vectors @ centre
        with np.errstate(divide="ignore", invalid="ignore"):
            return vectors @ east / along, vectors @ np.cross(centre, east) / along

    def contains(self, ra: ArrayLike, dec: ArrayLike) -> Bool:
        vectors = unit_vectors(ra, dec)
        x, y = self._plane(vectors)
        corners = np.stack(self._plane(self._corners()), axis=-1)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if ay != by:
                inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        return inside & (vectors @ self._centre() > 0)

    def cover(self, order: int) -> Int64:
        def touches(ra: Float64, dec: Float64, pixel_deg: float) -> Bool:
            on_edge = _edge_separation_deg(self._corners(), unit_vectors(ra, dec)) <= pixel_deg
            return on_edge | self.contains(ra, dec)

        return _descend(order, touches)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "polygon", "vertices": [list(vertex) for vertex in self.vertices]}


@dataclass(frozen=True)
class Pixels:
    """A set of HEALPix pixels of one order.

    Parameters
    ----------
    order : int
        HEALPix order, 0 to 29.
    pixels : tuple of int
        NESTED pixel numbers; stored sorted, without duplicates.

    Raises
    ------
    ConfigError
        There is no pixel, or one that the order does not have.

    Examples
    --------
    >>> Pixels(5, (4000, 4001)).cover(4).tolist()
    [1000]
    """

    order: int
    pixels: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            order, values = index(self.order), tuple(sorted({index(pixel) for pixel in self.pixels}))
        except TypeError as error:
            raise ConfigError(f"pixels of order {self.order!r}: order and pixels must be whole numbers") from error
        if not 0 <= order <= MAX_ORDER:
            raise ConfigError(f"pixels order is {order}: it must be from 0 to {MAX_ORDER}")
        if not values or values[0] < 0 or values[-1] >= 12 * 4**order:
            raise ConfigError(
                f"pixels of order {order} must be one or more numbers from 0 to {12 * 4**order - 1}, "
                f"got {f'{values[0]}..{values[-1]}' if values else 'none'}"
            )
        _set(self, order=order, pixels=values)

    def contains(self, ra: ArrayLike, dec: ArrayLike) -> Bool:
        return np.isin(healpix(self.order, ra, dec), np.asarray(self.pixels, np.int64))

    def cover(self, order: int) -> Int64:
        pixels = np.asarray(self.pixels, np.int64)
        if order <= self.order:
            return cast(Int64, np.unique(pixels >> 2 * (self.order - order)))
        children = 4 ** (order - self.order)
        return cast(Int64, (pixels[:, None] * children + np.arange(children)).ravel())

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "pixels", "order": self.order, "pixels": list(self.pixels)}


KINDS: dict[str, Callable[..., Region]] = {
    "cone": Cone,
    "box": Box,
    "polygon": Polygon,
    "pixels": Pixels,
    "moc": read_moc,
}
"""The `kind` of a region in RUN.toml -> what makes it from its other fields."""


def region_text(region: Region | None) -> str:
    """Return a region for messages, as in RUN.toml: region {kind = cone, ra = 149.75, dec = 2.2, radius = 20arcmin}."""
    if region is None:
        return "catalogue"
    values = region.to_dict()
    if "radius" in values:
        values["radius"] = angle_text(values["radius"])
    return "region {" + ", ".join(f"{name} = {value}" for name, value in values.items()) + "}"


def region_identity(region: Region | None) -> str:
    """Return what identifies a region: its values; of a MOC file the digest and not the path, as files may move."""
    values = region.to_dict() if region else {}
    return json.dumps({name: value for name, value in values.items() if name != "path"}) if values else "all"


def region_from_dict(values: Mapping[str, Any]) -> Region:
    """Return the region of a `to_dict` or of RUN.toml; raise `ConfigError` for an unknown kind or field.

    {"kind": "moc", "path": "field.fits"} reads a MOC file.
    """
    fields = {name: value for name, value in values.items() if name != "kind"}
    kind = values.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"region kind is {kind!r}: it must be one of {', '.join(KINDS)}")
    try:
        return KINDS[kind](**fields)
    except TypeError as error:
        takes = ", ".join(inspect.signature(KINDS[kind]).parameters)
        raise ConfigError(f"region {kind} takes {takes}; given are {', '.join(sorted(fields))}") from error


def _edge_separation_deg(corners: Float64, points: Float64) -> Float64:
    """Return the distance (N,) in degrees of unit vectors (N, 3) to the nearest polygon edge."""
    nearest = np.full(len(points), 180.0)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        to_corner = np.degrees(2 * np.arcsin(np.minimum(np.linalg.norm(points - a, axis=1) / 2, 1)))
        nearest = np.minimum(nearest, to_corner)
        normal = np.cross(a, b)
        length = np.linalg.norm(normal)
        if length > 0:
            normal /= length
            over_edge = (points @ np.cross(normal, a) >= 0) & (points @ np.cross(b, normal) >= 0)
            to_circle = np.degrees(np.arcsin(np.minimum(np.abs(points @ normal), 1)))
            nearest = np.where(over_edge, np.minimum(nearest, to_circle), nearest)
    return nearest
