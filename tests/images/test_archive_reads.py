"""How often an archive reads what: headers, pixels and checksums of a source that fails, changes or answers slowly."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from skyclass.errors import ArchiveError, TileFault
from skyclass.images import archive as archive_module
from skyclass.images.archive import AtlasArchive, open_archive
from skyclass.images.atlas import AtlasImage, RejectedFile
from skyclass.images.layout import layout_path
from skyclass.images.source import MemorySource, Piece, SourceChanged, describe, image_of, read_head
from skyclass.images.usable import require_usable_tile
from skyclass.types import BANDS, FileStamp
from tests.support.atlas_files import COADD_ID, COLUMNS, ROWS, atlas_bytes, fault_of, pixels_of

W1, W2 = (layout_path(COADD_ID, band) for band in ("w1", "w2"))


class Remote(MemorySource):
    """Files in memory that count as remote; `reads` has each read, and `steps` what happens at the next ones."""

    is_remote = True
    tag = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        object.__setattr__(self, "reads", [])
        object.__setattr__(self, "steps", [])

    def names(self, coadd_id: str, band: str) -> tuple[str, ...]:
        return (layout_path(coadd_id, band),)

    def read(self, name: str, start: int, stop: int) -> Iterator[Piece]:
        self.reads.append((name, start, stop))
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        source = self if step is None else MemorySource({name: step})
        for data, stamp in MemorySource.read(source, name, start, stop):
            yield Piece(data, stamp if self.tag else FileStamp(stamp.size_bytes, 1, 2))


class Local(Remote):
    """The same, with stamps that have no tag, as those of local files."""

    is_remote = False
    tag = False


@pytest.fixture(autouse=True)
def no_remembered_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_heads", {})


@pytest.fixture
def remote() -> Remote:
    return Remote({W1: atlas_bytes(1), W2: atlas_bytes(2)})


@pytest.fixture
def local() -> Local:
    return Local({W1: atlas_bytes(1), W2: atlas_bytes(2)})


# --- headers ---------------------------------------------------------------------------------------


def test_the_headers_of_remote_files_are_remembered_and_read_again_to_verify(remote):
    archive, head = AtlasArchive(remote, ("w1", "w2")), (0, 16 * 2880)
    tile = archive.tile(COADD_ID, ("w1", "w2"))
    assert archive.tile(COADD_ID, ("w2",)).bands == ("w2",)
    assert remote.reads == [(W1, *head), (W2, *head)]
    assert archive.tile(COADD_ID, ("w1", "w2"), verify=True) == tile
    assert remote.reads == [(W1, *head), (W2, *head)] * 2
    assert archive.bands_of(COADD_ID) == archive.bands_of(COADD_ID) == ("w1", "w2")
    absent = [(layout_path(COADD_ID, band), *head) for band in ("w3", "w4")]
    assert remote.reads[4:] == absent, "what is absent is remembered too"
    del remote.files[W2]
    assert archive.tile(COADD_ID, ("w1", "w2")) == tile, "remembered"
    assert fault_of(lambda: archive.tile(COADD_ID, ("w1", "w2"), verify=True)).kind == "missing_band"
    assert archive.bands_of(COADD_ID) == ("w1",)


def test_the_headers_of_a_list_of_remote_tiles_are_remembered(remote):
    archive = AtlasArchive(remote, ("w2",))
    (tile,) = archive.list_tiles()
    assert (tile.coadd_id, tile.bands) == (COADD_ID, ("w2",)) and archive.list_tiles() == [tile]
    assert [name for name, _, _ in remote.reads] == [W2]


def test_headers_of_local_files_are_read_each_time(local):
    archive = AtlasArchive(local, ("w1",))
    for _ in range(3):
        archive.tile(COADD_ID, ("w1",))
    assert len(local.reads) == 3


def test_a_limited_number_of_headers_is_remembered(remote, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_HEADS", 2)
    names = {layout_path(COADD_ID, band): atlas_bytes(n) for n, band in enumerate(BANDS, 1)}
    remote.files.update(names)
    archive = AtlasArchive(remote, BANDS)
    for band, n_reads in (
        ("w1", 1),
        ("w2", 2),
        ("w1", 2),
        ("w2", 2),
        ("w3", 3),
        ("w3", 3),
        ("w1", 4),
        ("w3", 4),
        ("w2", 5),
    ):
        archive.tile(COADD_ID, (band,))
        assert len(remote.reads) == n_reads, "the third header takes the place of the two before it"


@pytest.mark.parametrize("kind", ["remote", "local"])
def test_a_file_counts_as_damaged_when_two_answers_say_so(kind, request):
    source = request.getfixturevalue(kind)
    archive, page = AtlasArchive(source, ("w1",)), b"<html>"
    source.steps[:] = [page]
    assert archive.tile(COADD_ID, ("w1",)).bands == ("w1",) and len(source.reads) == 2
    source.reads.clear()
    source.steps[:] = [page, page]
    fault = fault_of(lambda: archive.tile(COADD_ID, ("w1",), verify=True))
    assert "an HTML or XML page" in fault.reason and len(source.reads) == 2
    source.reads.clear()
    source.steps[:] = [OSError("disk error"), OSError("disk error")]
    fault = fault_of(lambda: archive.tile(COADD_ID, ("w1",), verify=True))
    assert "cannot be read (disk error): check path and permissions" in fault.reason and len(source.reads) == 2


def test_a_file_that_cannot_be_read_exists(local):
    local.steps[:] = [OSError("disk error")] * 2
    assert AtlasArchive(local, ("w1",)).bands_of(COADD_ID) == ("w1", "w2")


def test_the_footprint_of_a_tile_is_that_of_its_first_readable_image(local):
    local.files[layout_path("0111m015_ac51", "w1")] = b"<html>"
    local.files[W1] = b"no FITS"
    archive = AtlasArchive(local, ("w1", "w2"))
    assert [(tile.coadd_id, tile.bands) for tile in archive.list_tiles()] == [(COADD_ID, ("w2",))]
    assert archive.list_tiles(([180.0], [0.0])) == []


def test_a_tile_needs_a_band(local):
    with pytest.raises(ValueError, match="bands is empty"):
        AtlasArchive(local, ("w1",)).tile(COADD_ID, ())


def test_checksums_are_compared_on_request_and_only_of_files_that_are_not_remote(local, remote):
    for source in (local, remote):
        source.files[f"{W2}.md5"] = b"0" * 32
        assert AtlasArchive(source, BANDS).tile(COADD_ID, ("w1", "w2")).bands == ("w1", "w2")
    assert AtlasArchive(remote, BANDS).tile(COADD_ID, ("w1", "w2"), verify=True).bands == ("w1", "w2")
    fault = fault_of(lambda: AtlasArchive(local, BANDS).tile(COADD_ID, ("w1", "w2"), verify=True))
    assert (fault.band, fault.kind) == ("w2", "bad") and fault.reason.endswith(f"says {'0' * 32}: fetch it again")


# --- pixels ----------------------------------------------------------------------------------------


def test_rows_are_read_with_the_header_unless_a_tag_identifies_the_file(local, remote):
    first, last = 2880 + 4 * COLUMNS * 3, 2880 + 4 * COLUMNS * 9
    for source, reads in ((remote, [(W2, first, last)]), (local, [(W2, 0, 2880), (W2, first, last)])):
        archive = AtlasArchive(source, ("w1", "w2"))
        tile = archive.tile(COADD_ID, ("w1", "w2"))
        source.reads.clear()
        np.testing.assert_array_equal(archive.read_rows(tile, "w2", 3, 9), pixels_of(2)[3:9])
        assert source.reads == reads


def test_rows_of_a_file_that_is_gone_or_another_are_asked_for_twice(remote):
    archive = AtlasArchive(remote, ("w1",))
    tile = archive.tile(COADD_ID, ("w1",))

    def rows_after(*steps: object) -> np.ndarray:
        remote.reads.clear()
        remote.steps[:] = steps
        return archive.read_rows(tile, "w1", 0, 9)

    gone, changed = FileNotFoundError(W1), SourceChanged("it was replaced")
    for passing in (gone, changed, atlas_bytes(3)):
        np.testing.assert_array_equal(rows_after(passing), pixels_of(1)[:9])
        assert len(remote.reads) == 2
    for lasting, words in ((gone, "it was removed"), (changed, "it was replaced"), (atlas_bytes(3), "ETag or date")):
        fault = fault_of(lambda lasting=lasting: rows_after(lasting, lasting))
        assert (fault.kind, fault.band) == ("changed", "w1") and words in fault.reason and len(remote.reads) == 2
    fault = fault_of(lambda: rows_after(OSError("disk error")))
    assert fault.kind == "bad" and len(remote.reads) == 1, "not asked for again"
    assert fault.reason == f"memory:/{W1} cannot be read (disk error): check the disk, fetch it again"


def test_another_header_under_the_same_stamp_is_a_change(local):
    archive = AtlasArchive(local, ("w1",))
    tile = archive.tile(COADD_ID, ("w1",))
    local.files[W1] = atlas_bytes(1, MAGZP=20.25)
    fault = fault_of(lambda: archive.read_rows(tile, "w1", 0, 9))
    assert fault.kind == "changed" and "(it has another header)" in fault.reason


def test_pixels_are_hashed_in_parts_from_the_first_row_to_the_last(remote, monkeypatch):
    archive = AtlasArchive(remote, ("w1", "w2"))
    tile = archive.tile(COADD_ID, ("w1", "w2"))

    def digests(start: int, stop: int) -> dict[str, str]:
        rows = {W1: pixels_of(1)[start:stop], W2: pixels_of(2)[start:stop]}
        return {name: hashlib.sha256(pixels.astype(">f4").tobytes()).hexdigest() for name, pixels in rows.items()}

    assert archive.pixel_sha256(tile) == digests(0, ROWS)
    assert archive.pixel_sha256(tile, 30) == digests(30, ROWS) and archive.pixel_sha256(tile, 3, 4) == digests(3, 4)
    monkeypatch.setattr(archive_module, "HASH_ROWS", 16)
    remote.reads.clear()
    assert archive.pixel_sha256(tile, 2) == digests(2, ROWS)
    edges = [2880 + 4 * COLUMNS * row for row in (2, 18, 34, ROWS)]
    assert [read[1:] for read in remote.reads if read[0] == W1] == list(zip(edges, edges[1:], strict=False))
    for start, stop in ((0, ROWS + 1), (5, 5), (-1, 3)):
        with pytest.raises(ValueError, match="rows"):
            archive.pixel_sha256(tile, start, stop)


def test_all_image_sets_of_a_tile_are_hashed(remote):
    archive = AtlasArchive(remote, ("w1", "w2"))
    w1, w2 = (archive.tile(COADD_ID, (band,)) for band in ("w1", "w2"))
    both = archive.pixel_sha256(replace(w1, other_image_sets=(w2,)))
    assert both == archive.pixel_sha256(w1) | archive.pixel_sha256(w2) and len(both) == 2


# --- before a run ----------------------------------------------------------------------------------


class Tiles:
    """An archive that knows some tiles; the others have a fault of the kind after their name."""

    def __init__(self, *usable: str) -> None:
        self.usable, self.asked = usable, Counter()

    def tile(self, coadd_id: str, bands: tuple[str, ...]) -> None:
        self.asked[coadd_id] += 1
        if coadd_id not in self.usable:
            kind = "bad" if coadd_id.startswith("bad") else "missing_tile"
            raise TileFault(coadd_id, f"{kind} it is", None, kind)


def refusal(location: str, coadd_ids: list[str]) -> str:
    with pytest.raises(ArchiveError) as caught:
        require_usable_tile(Tiles(), location, coadd_ids, ("w1",))
    return str(caught.value)


def test_two_hundred_tiles_are_looked_at_in_search_of_a_usable_one():
    names = [f"tile {n}" for n in range(300)]
    tiles = Tiles(names[199])
    require_usable_tile(tiles, "/data", names, ("w1",))
    assert list(tiles.asked) == names[:200]
    with pytest.raises(ArchiveError, match="/data: of 200 tiles looked at, none is usable: "):
        require_usable_tile(Tiles(names[200]), "/data", names, ("w1",))
    first = Tiles(names[0])
    require_usable_tile(first, "/data", names, ("w1",))
    assert list(first.asked) == names[:1]


def test_the_first_five_reasons_are_given_and_a_hint_where_all_tiles_are_missing():
    reasons = "; ".join(f"tile {n}: missing_tile it is" for n in "abcde")
    assert refusal("/data", list("abcdefg")) == f"/data: of 7 tiles looked at, none is usable: {reasons}"
    hint = "; give the location that holds the folders 00 to 35; the public ones are s3://nasa-irsa-wise/"
    assert f"{reasons}{hint}" in refusal("https://host/x", list("abcdef"))
    assert refusal("https://host/x", ["a", "bad b"]) == (
        "https://host/x: of 2 tiles looked at, none is usable: tile a: missing_tile it is; tile bad b: bad it is"
    )
    assert "of 1 tile looked at" in refusal("file:///x", ["a"]) and "00 to 35" not in refusal("file:///x", ["a"])


def test_a_location_without_a_scheme_is_a_folder(tmp_path):
    (tmp_path / W1).parent.mkdir(parents=True)
    (tmp_path / W1).write_bytes(atlas_bytes())
    for location in (tmp_path, f"file://{tmp_path}"):
        archive = open_archive(location, ["w1"])
        assert (archive.root, archive.bands) == (str(tmp_path), ("w1",))
    assert open_archive(str(tmp_path), BANDS).bands == BANDS
    with pytest.raises(ArchiveError, match=r"images at gs://host/p: give a folder, .* image source for gs:// is"):
        open_archive("gs://host/p", ["w1"])


# --- the header in the bytes of a source -----------------------------------------------------------


@pytest.mark.parametrize(
    ("n_blocks", "n_read", "reads"),
    [(1, 1, [16]), (15, 15, [16]), (16, 16, [16, 128]), (17, 17, [16, 128]), (64, 64, [16, 128]), (65, 64, [16, 128])],
)
def test_a_long_header_is_read_with_a_second_request(n_blocks, n_read, reads):
    cards = b"SIMPLE  =".ljust(max(80, 2880 * (n_blocks - 1))) + b"END".ljust(80)
    content = cards.ljust(2880 * n_blocks) + bytes(2880 * 200)
    source = Remote({"a": content})
    head = read_head(source, "a")
    assert head.data == content[: 2880 * n_read] and head.stamp.size_bytes == len(content)
    assert source.reads == [("a", 0, 2880 * n) for n in reads]


def test_the_pieces_of_a_header_are_joined():
    class InPieces(MemorySource):
        def read(self, name: str, start: int, stop: int) -> Iterator[Piece]:
            ((data, stamp),) = super().read(name, start, stop)
            for at in range(0, len(data), 1000):
                yield Piece(data[at : at + 1000], stamp)

    files = {W1: atlas_bytes()}
    assert read_head(InPieces(files), W1) == read_head(MemorySource(files), W1)


def test_a_header_is_interpreted_once_for_each_stamp_and_device():
    source = MemorySource({W1: atlas_bytes()})
    head = read_head(source, W1)
    image = image_of(source, W1, head)
    assert isinstance(image, AtlasImage) and image_of(source, W1, head) is image and image.path == f"memory:/{W1}"
    moved = head._replace(stamp=replace(head.stamp, device=7))
    other = image_of(source, W1, moved)
    assert moved == head and isinstance(other, AtlasImage) and other.file.stamp.device == 7


def test_a_missing_file_is_described_as_one_that_cannot_be_read():
    file = describe(MemorySource({}), W2)
    assert file == RejectedFile(f"memory:/{W2}", f"cannot be read ({W2}): check path and permissions", COADD_ID, "w2")


def test_sources_in_memory_with_equal_files_are_two():
    one, other = MemorySource({}), MemorySource({})
    assert one != other and len({one, other, one}) == 2
    files = {W1: atlas_bytes(), layout_path("1800p000_ac51", "w1"): b""}
    assert MemorySource(files).names(COADD_ID, "w1") == (W1,) and MemorySource(files).names(COADD_ID, "w2") == ()
    assert len(list(MemorySource(files).footprints(("w1",), None))) == 2
    ((first, *_),) = MemorySource(files).footprints(("w1",), ([180.0], [0.0]))
    assert first == layout_path("1800p000_ac51", "w1")
