"""An image source for ZIP files whose entries follow the layout of the archive."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from skyclass.errors import ArchiveError
from skyclass.images.layout import Positions, layout_coadd_ids, layout_footprints, layout_path, names_near
from skyclass.images.source import ImageSource, Piece
from skyclass.types import FileStamp


@dataclass(frozen=True)
class ZipSource:
    """The images in a ZIP file."""

    location: str
    is_remote: ClassVar[bool] = False

    def names(self, coadd_id: str, band: str) -> Sequence[str]:
        """Return the name in the layout of the archive if the ZIP file has such an entry."""
        name = layout_path(coadd_id, band)
        return [name] if name in self._entries() else []

    def read(self, name: str, start: int, stop: int) -> Iterator[Piece]:
        """Yield the bytes in one piece; the CRC of the entry shows later whether the file was replaced."""
        if name not in self._entries():
            raise FileNotFoundError(name)
        try:
            with self._open() as file, file.open(name) as stream:
                entry = file.getinfo(name)
                stream.seek(start)
                data = stream.read(stop - start)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise OSError(f"the entry is damaged: {error}") from error
        yield Piece(memoryview(data), FileStamp(entry.file_size, tag=f"{entry.CRC:08x}"))

    def footprints(self, bands: Sequence[str], near: Positions | None) -> Iterable[Sequence[str]]:
        """Yield the images of each tile."""
        coadd_ids = layout_coadd_ids(self._entries())
        return layout_footprints(coadd_ids if near is None else names_near(coadd_ids, near), bands)

    def _open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.location.removeprefix("zip://"))

    def _entries(self) -> list[str]:
        with self._open() as file:
            return file.namelist()


def open_zip(location: str, bands: tuple[str, ...]) -> ImageSource:
    """Return the source of a location `zip:///PATH/FILE`; `ArchiveError` if there is no such ZIP file."""
    path = location.removeprefix("zip://")
    if not path.startswith("/"):
        raise ArchiveError(f"images at {location}: write the whole path, as in zip:///data/images.zip")
    if not zipfile.is_zipfile(path):
        raise ArchiveError(f"images at {location}: {path} is no ZIP file, or does not exist")
    return ZipSource(location)
