"""Labels from stand-ins of SkyServer and IRSA over a small simulated table; the expected ones by plain loops."""

from __future__ import annotations

import math
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy_healpix import healpix_to_lonlat

from skyclass.errors import CatalogError, ConfigError, SkyclassError
from skyclass.sky.healpix import separation_deg
from skyclass.sky.regions import Box
from skyclass.sources.opening import open_sources
from skyclass.training.data import service as service_module
from skyclass.training.data.allwise import match_offline
from skyclass.training.data.config import LabelsConfig, labels_config
from skyclass.training.data.labels import (
    LABEL_SCHEMA,
    fetch_labels,
    label_provenance,
)
from skyclass.training.data.sdss import SpectrumQuery
from skyclass.training.data.service import ServiceError
from tests.support.label_tables import (
    ARCSEC,
    BIG,
    CLASS_OF,
    TABLES,
    as_dict,
    expected_labels,
    simulated_tables,
    write_catalog,
)
from tests.support.skyserver import (
    Services,
    cut,
    hang_up,
    html_error,
    json_error,
    says,
    sdss_message,
    silence,
    unavailable,
    votable,
    votable_error,
)


@pytest.fixture
def services():
    with Services(TABLES) as running:
        yield running


@pytest.fixture
def config(services, tmp_path) -> LabelsConfig:
    return LabelsConfig(out=str(tmp_path / "labels.parquet"), page_rows=24, upload_rows=50, sdss_url=services.url,
                        tap_url=services.url + "/TAP", timeout_s=5.0, retries=2, backoff_s=0.01)  # fmt: skip


def message_of(config: LabelsConfig, kind: type[SkyclassError] = ServiceError) -> str:
    with pytest.raises(kind) as caught:
        fetch_labels(config)
    assert not Path(config.out).exists(), "a failed download leaves nothing under the final name"
    return str(caught.value)


# --- what comes out --------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_labels_are_those_of_plain_loops_over_the_tables(services, config):
    events: list[dict[str, object]] = []
    path = fetch_labels(config, events.append)
    expected = expected_labels(TABLES)
    assert as_dict(path) == expected and 60 < len(expected) < 120
    assert {kind for kind, _ in expected.values()} == set(CLASS_OF.values())
    table = pq.read_table(path)
    assert table.schema.equals(LABEL_SCHEMA)
    assert max(table["specobjid"].to_pylist()) > BIG
    assert "AGN, BROADLINE" in table["subclass"].to_pylist()
    assert math.isclose(np.median(table["match_arcsec"]), 0.8, abs_tol=1e-6)
    assert table["w3mpro"].null_count and max(table["w3mpro"].drop_null().to_pylist()) < 30
    assert {event["step"] for event in events} == {"sdss", "match", "write"}
    assert not path.with_name("labels.parquet.pages").exists()


@pytest.mark.integration
def test_the_table_remembers_queries_cuts_and_counts_that_add_up(services, config):
    story = label_provenance(fetch_labels(config))
    counts = story["counts"]
    lost = ("of_another_class", "conflicting_class_in_sdss", "repeated_spectra", "without_allwise_source",
            "below_min_snr_in_allwise", "conflicting_class_in_allwise", "sharing_an_allwise_source")  # fmt: skip
    assert counts["spectra"] - sum(counts[name] for name in lost) == counts["labels"]
    assert all(counts[name] > 0 for name in lost if name != "of_another_class")
    assert counts["labels"] == sum(counts[name] for name in CLASS_OF.values())
    assert story["data_release"] == 17 and story["cuts"]["min_snr"] == 5.0 and story["date"].startswith("20")
    assert "SpecObj" in story["sdss_query"]["star"] and "allwise_p3as_psd" in story["allwise_query"]


@pytest.mark.integration
def test_offline_and_by_upload_give_the_same_labels(services, config, tmp_path):
    online = as_dict(fetch_labels(config))
    catalog = write_catalog(tmp_path / "allwise", TABLES["allwise_p3as_psd"])
    n_uploads = services.count("tap")
    offline = replace(config, out=str(tmp_path / "offline.parquet"), catalog=str(catalog))
    assert as_dict(fetch_labels(offline)) == online
    assert services.count("tap") == n_uploads
    assert len(list(catalog.glob("*/*"))) > 1, "the field lies across partition borders"


def test_the_offline_match_is_that_of_brute_force_on_borders_of_partitions(tmp_path):
    rng = np.random.default_rng(3)
    lon, lat = healpix_to_lonlat([3000, 3001, 700, 1023, 12287], 32, dx=0, dy=0, order="nested")  # corners of pixels
    corner = rng.integers(0, 6, 400)
    ra0, dec0 = np.r_[lon.deg, 0.0][corner], np.r_[lat.deg, 89.9995][corner]
    dec = np.minimum(dec0 + rng.normal(0, 3, 400) * ARCSEC, 89.9998)  # room for the shift below
    ra = (ra0 + rng.normal(0, 3, 400) * ARCSEC / np.cos(np.radians(dec))) % 360
    allwise = simulated_tables(n=401)["allwise_p3as_psd"].slice(0, 300)
    names = [f"0098p408_ac51-{i:06d}" for i in range(300)]
    for name, values in (("ra", ra[:300]), ("dec", dec[:300]), ("source_id", names)):
        allwise = allwise.set_column(allwise.column_names.index(name), name, pa.array(values))
    asked = pa.table({"ra": np.roll(ra, 7), "dec": np.roll(dec, 7) + 0.5 * ARCSEC})
    catalog = open_sources(str(write_catalog(tmp_path / "allwise", allwise)))
    found = match_offline(asked, catalog, 2.0)
    asked_ra, asked_dec = asked["ra"].to_numpy()[:, None], asked["dec"].to_numpy()[:, None]
    arcsec = 3600 * separation_deg(asked_ra, asked_dec, ra[:300], dec[:300])
    matched = np.flatnonzero(arcsec.min(axis=1) <= 2.0)
    assert len(catalog.partitions) > 8 and 200 < len(matched) < 400
    assert found["label_row"].to_pylist() == matched.tolist()
    assert found["source_id"].to_pylist() == [names[i] for i in arcsec[matched].argmin(axis=1)]


@pytest.mark.integration
def test_paging_does_not_depend_on_the_size_of_a_page(services, config, tmp_path):
    services.silent_limit = 5  # a server that gives fewer rows than it was asked for, and does not say so
    small = fetch_labels(replace(config, page_rows=7, upload_rows=19))
    services.silent_limit = None
    large = fetch_labels(replace(config, out=str(tmp_path / "large.parquet"), page_rows=5000, upload_rows=5000))
    assert pq.read_table(small).equals(pq.read_table(large))
    assert services.count("sdss") > 25


@pytest.mark.integration
def test_region_sample_and_limit_are_asked_of_the_server(services, config, tmp_path):
    everything = as_dict(fetch_labels(config))
    box = Box(359.9, 0.1, -0.1, 0.1)
    inside = fetch_labels(replace(config, out=str(tmp_path / "box.parquet"), region=box))
    rows = pq.read_table(inside)
    assert 0 < len(rows) < len(everything) and box.contains(rows["ra"], rows["dec"] - np.float64(0)).mean() > 0.9
    third = as_dict(fetch_labels(replace(config, out=str(tmp_path / "third.parquet"), one_in=3)))
    assert 0.15 < len(third) / len(everything) < 0.55
    few = label_provenance(fetch_labels(replace(config, out=str(tmp_path / "few.parquet"), per_class=9)))
    assert few["counts"]["spectra"] == 27


def test_the_query_fits_into_an_address_and_wraps_at_ra_zero():
    query = SpectrumQuery(2.0, 5.0, one_in=4, box=Box(350, 10, -1, 1)).sql("quasar", 99, (2**63, 12))
    assert query.startswith("SELECT TOP 99 s.specObjID AS specobjid") and "s.class = 'QSO'" in query
    assert "(s.ra >= 350.0 OR s.ra <= 10.0) AND s.dec BETWEEN -1.0 AND 1.0" in query
    assert f"s.specObjID >= {2**63} AND (s.specObjID > {2**63} OR w.cntr > 12)" in query
    assert "\n" not in query and ";" not in query and "--" not in query


# --- faults that pass ------------------------------------------------------------------------------

PASSING_SDSS = [
    (unavailable(), "HTTP 503 Service Unavailable: 503 Service Unavailable No server is available"),
    (hang_up, "connection failed"),
    (cut(40, promised=True), "connection failed"),
    (cut(2, promised=False), "cut short in its line"),
    (cut(25, promised=False), "cut short or damaged"),
    (says("#Table1\nspecobjid,class,subcl"), "cut short in its first line"),
    (json_error("Execution Timeout Expired.  The timeout period elapsed."), "Execution Timeout Expired"),
    (says(sdss_message("ERROR: Maximum 60 queries allowed per minute. Rejected query: SELECT")), "Maximum 60 queries"),
    (html_error(""), "an error page without a reason"),
    (says("<html><title>SciServer</title><body>Back soon</body></html>", "text/html"), "SciServer Back soon"),
    (says(""), "an empty answer"),
]
PASSING_TAP = [
    (unavailable("0"), "HTTP 503"),
    (says("<html><h1>502 Proxy Error</h1></html>", "text/html", 502), "HTTP 502 Bad Gateway: 502 Proxy Error"),
    (says("Slow down", "text/plain", 429), "HTTP 429 Too Many Requests: Slow down"),
    (hang_up, "connection failed"),
    (says("<!DOCTYPE html><html><title>IRSA</title>Maintenance</html>", "text/html"), "no VOTable: IRSA Maintenance"),
    (says(votable(TABLES["allwise_p3as_psd"])[:900], "text/xml"), "the VOTable is cut short"),
    (says('<?xml version="1.0"?>\n<VOTABLE version="1.3"><RESOURCE>', "text/xml"), "the VOTable is cut short"),
    (says(votable_error("Query timed out after 300 s"), "text/xml"), "Query timed out after 300 s"),
]


@pytest.mark.integration
@pytest.mark.parametrize(("service", "faults"), [("sdss", PASSING_SDSS), ("tap", PASSING_TAP)], ids=["sdss", "tap"])
def test_a_passing_fault_costs_one_more_request_and_no_label(services, config, service, faults):
    for fault, _ in faults:
        services.faults[service].extend([fault, None])
    waits: list[dict[str, object]] = []
    small = replace(config, page_rows=7, upload_rows=9)
    path = fetch_labels(small, lambda event: waits.append(event) if event["step"] == "wait" else None)
    assert as_dict(path) == expected_labels(TABLES)
    assert not services.faults[service]
    for (_, words), wait in zip(faults, waits, strict=True):
        assert words in str(wait["reason"]) and wait["seconds"] in (0.0, 0.01)


def test_a_machine_without_the_network_is_told_so_and_not_to_ask_for_fewer_rows(config):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = message_of(replace(config, sdss_url=nobody, retries=1))
    assert "no answer in 2 attempts" in message and "the service cannot be reached: run this on" in message
    assert "page_rows" not in message


@pytest.mark.integration
@pytest.mark.parametrize("service", ["sdss", "tap"])
def test_a_service_that_never_answers_is_left_after_the_time_limit(services, config, service):
    services.faults[service].extend([silence] * 2)
    message = message_of(replace(config, timeout_s=0.3, retries=1))
    assert "silence for 0.3 s" in message and "2 attempts" in message and services.url in message


def test_waits_double_and_retry_after_goes_first(services, config, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(service_module, "sleep", waits.append)
    services.faults["sdss"].extend([unavailable(), unavailable("7"), unavailable("99999"), unavailable()])
    fetch_labels(replace(config, retries=4, backoff_s=3.0))
    assert waits == [3.0, 7.0, 300.0, 24.0]
    assert service_module.retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert service_module.retry_after_s("soon") is None


# --- faults that stay ------------------------------------------------------------------------------

REFUSED_SDSS = {
    "Invalid column name 'w1mpro'": json_error("Invalid column name 'w1mpro'."),
    "Incorrect syntax near 'FROM'": html_error("Incorrect syntax near 'FROM'."),
    "error: limit is  top 500000": says(sdss_message("error: limit is  top 500000  SELECT TOP 900000 s.specObjID")),
    "columns objid, ra": says("#Table1\nobjid,ra\n1,2\n"),
}


@pytest.mark.parametrize("reason", REFUSED_SDSS)
def test_what_skyserver_refuses_is_told_at_once_with_its_own_words(services, config, reason):
    services.faults["sdss"].append(REFUSED_SDSS[reason])
    message = message_of(config)
    assert reason in message and "SDSS SkyServer DR17" in message and services.url in message
    assert "class GALAXY" in message and "page_rows" in message and "\n" not in message
    assert services.count("sdss") == 1


def test_the_row_limit_of_the_server_is_told(services, config):
    services.row_limit = 5
    assert "limit is  top 5" in message_of(config)


def test_a_release_that_is_not_there_is_told(services, config):
    message = message_of(replace(config, data_release=99))
    assert "HTTP 404" in message and "DR99" in message and "data_release" in message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (votable_error("Table 'allwise_p3as_psd' is unknown"), "Table 'allwise_p3as_psd' is unknown"),
        (
            votable(TABLES["allwise_p3as_psd"].slice(0, 3), "OVERFLOW"),
            "no column label_row",
        ),
    ],
)
def test_what_irsa_refuses_is_told_at_once(services, config, answer, words):
    services.faults["tap"].append(says(answer, "application/x-votable+xml"))
    message = message_of(config)
    assert words in message and "IRSA TAP" in message and "catalog" in message and "50 uploaded positions" in message
    assert services.count("tap") == 1


def test_an_overflow_is_never_taken_for_the_whole_answer(services, config):
    services.tap_limit = 3
    message = message_of(config)
    assert "OVERFLOW" in message and "upload_rows" in message


# --- going on --------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_download_that_broke_goes_on_page_by_page(services, config, tmp_path):
    whole = fetch_labels(replace(config, out=str(tmp_path / "whole.parquet")))
    counts = label_provenance(whole)["counts"]
    n_cleaned = counts["spectra"] - counts["conflicting_class_in_sdss"] - counts["repeated_spectra"]
    services.asked.clear()
    services.faults["sdss"].extend([None] * 4 + [unavailable()] * 3)
    assert "the downloaded pages are kept" in message_of(config)
    services.faults["tap"].extend([None] + [hang_up] * 3)
    message_of(replace(config, page_rows=6))  # the way out of a slow page may change its size
    path = fetch_labels(replace(config, upload_rows=11))
    assert pq.read_table(path).equals(pq.read_table(whole))
    pages = Counter(query.partition(" WHERE ")[2] for service, query in services.asked if service == "sdss")
    assert sorted(pages.values())[-2:] == [1, 4], "only the page that failed three times was asked for again"
    assert services.count("tap") == 1 + 3 + math.ceil((n_cleaned - config.upload_rows) / 11)
    assert not list(tmp_path.glob("*.pages")) and not list(tmp_path.glob(".*"))


def test_pages_of_another_question_are_not_mixed_in(services, config):
    services.faults["sdss"].extend([None] * 2 + [unavailable()] * 3)
    message_of(config)
    message = message_of(replace(config, min_snr=7.0, data_release=18), ConfigError)
    assert "data_release, min_snr, query changed" in message and "labels.parquet.pages" in message


@pytest.mark.integration
def test_offline_goes_on_where_irsa_failed(services, config, tmp_path):
    services.faults["tap"].extend([unavailable("0")] * 3)
    message_of(config)
    n_spectra = services.count("sdss")
    catalog = write_catalog(tmp_path / "allwise", TABLES["allwise_p3as_psd"])
    assert as_dict(fetch_labels(replace(config, catalog=str(catalog)))) == expected_labels(TABLES)
    assert services.count("sdss") == n_spectra


# --- wrong input -----------------------------------------------------------------------------------


def test_every_problem_of_a_configuration_stands_in_one_message():
    with pytest.raises(ConfigError) as caught:
        wrong = {"out": "labels.csv", "data_release": 7, "page_rows": 0, "per_class": 0, "min_snr": -1}
        labels_config(wrong | {"sdss_url": "sky", "region": {"kind": "cone", "ra": 1, "dec": 2, "radius": 3}})
    words = ("labels.csv", "data_release = 7", "page_rows = 0", "per_class = 0", "min_snr = -1", "'sky'", "box")
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(ConfigError, match="unknown key 'page'.*out is required"):
        labels_config({"page": 3})
    assert labels_config({"out": "x.parquet", "region": {"kind": "box", "ra_min": 1, "ra_max": 2, "dec_min": 0,
                                                         "dec_max": 1}}).region == Box(1, 2, 0, 1)  # fmt: skip


def test_wrong_places_are_told_before_anything_is_asked(services, config, tmp_path):
    Path(config.out).write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        fetch_labels(config)
    assert Path(config.out).read_text() == "mine"
    Path(config.out).unlink()
    assert "no such file" in message_of(replace(config, catalog=str(tmp_path / "nowhere")), CatalogError)
    assert not services.asked


@pytest.mark.integration
def test_a_catalogue_of_another_release_or_field_is_refused(services, config, tmp_path):
    old = TABLES["allwise_p3as_psd"].to_pylist()
    allsky = pa.Table.from_pylist([row | {"coadd_id": "3599p000_ab41"} for row in old])
    where = write_catalog(tmp_path / "allsky", allsky)
    message = message_of(replace(config, catalog=str(where)), CatalogError)
    assert "3599p000_ab41 is no tile of AllWISE" in message
    elsewhere = pa.Table.from_pylist([row | {"ra": 100.0 + i} for i, row in enumerate(old)])
    where = write_catalog(tmp_path / "elsewhere", elsewhere)
    message = message_of(replace(config, catalog=str(where)), SkyclassError)
    assert "no label is left" in message and "without allwise source" in message
