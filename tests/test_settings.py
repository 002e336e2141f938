"""Configurations: strict types, every problem in one message, and the texts that are generated from their fields."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest

import skyclass
from skyclass.errors import ConfigError
from skyclass.run.config import RunConfig, run_config
from skyclass.settings import json_schema, keys, read_toml
from skyclass.sky.regions import Cone
from skyclass.training.data.config import DatasetConfig, LabelsConfig, dataset_config, labels_config
from skyclass.training.fit.recipe import TrainConfig, train_config

RUN = {"catalog": "c", "images": "i", "out": "o"}
TRAIN = {"out": "m", "dataset": "d"}
CONFIGURATIONS = (RunConfig, LabelsConfig, DatasetConfig, TrainConfig)
MAKERS = {
    "run": (run_config, RUN),
    "labels": (labels_config, {"out": "l.parquet"}),
    "dataset": (dataset_config, {"out": "o", "labels": "l", "images": "i"}),
    "training": (train_config, TRAIN),
}


def refusal(title: str, **changes: Any) -> str:
    """Return the message that refuses a configuration."""
    make, rest = MAKERS[title]
    with pytest.raises(ConfigError) as caught:
        make(rest | changes)
    assert str(caught.value).startswith(f"{title}: ")
    return str(caught.value).removeprefix(f"{title}: ")


@pytest.mark.parametrize(
    ("title", "changes", "message"),
    [
        ("training", {"frozen": [1], "start_from": "m"}, "frozen has 1: expected text in quotes"),
        ("training", {"composite": {"stretch": "foo"}}, "stretch = 'foo': choose one of asinh, linear"),
        ("training", {"composite": {"stretsch": "log"}}, "unknown settings ['stretsch']"),
        ("training", {"composite": ["log"]}, "composite = ['log']: expected a table such as {key = value}"),
        ("training", {"flips": 1}, "flips = 1: expected true or false"),
        ("training", {"epochs": True}, "epochs = True: expected a whole number"),
        ("training", {"epochs": 3.0}, "epochs = 3.0: expected a whole number"),
        ("training", {"noise": False}, "noise = False: expected a finite number"),
        ("training", {"noise": float("nan")}, "noise = nan: expected a finite number"),
        ("training", {"noise": "0.1"}, "noise = '0.1': expected a finite number"),
        ("training", {"bands": "w1"}, "bands = 'w1': expected a list"),
        ("training", {"hide_photometry": 1}, "hide_photometry = 1: must be from 0 to below 1"),
        ("training", {"learning_rate": 0}, "learning_rate = 0: must be above 0 and at most 1.0"),
        ("training", {"nodes": 2}, "nodes = 2: this needs a cluster"),
        ("training", {"features": ["w1-w2", "w1-w2"], "network": "colour"}, "features w1-w2, w1-w2: name each once"),
        ("training", {"features": ["W9"], "network": "colour"}, "unknown feature 'W9': name a magnitude"),
        ("training", {"name": "a\n"}, "name = 'a\\n': use letters, digits"),
        ("dataset", {"counts": {"star": 1.5}}, "counts.star = 1.5: expected a whole number"),
        ("dataset", {"counts": {"qso": 5}}, "qso is no class: choose from galaxy, quasar, star"),
        ("dataset", {"counts": {"star": 5}, "preset": "paper"}, "preset and counts exclude each other"),
        ("dataset", {"split": [8, "x", 1]}, "split has 'x': expected a finite number"),
        ("dataset", {"simulated": "yes"}, "simulated = 'yes': expected true or false"),
        ("labels", {"region": {"kind": "box", "ra_min": 1}}, "region = {'kind': 'box', 'ra_min': 1}: region box takes"),
        ("labels", {"tap_url": "ftp://x"}, "tap_url = 'ftp://x': write an address such as https://"),
        ("run", {"region": 3}, "region = 3: expected a region such as {kind"),
        ("run", {"workers": 2**70}, "must be from 1 to 10000"),
        ("run", {"workers": 1 << 20_000}, "workers = a number of more than 4,300 digits: must be from 1 to 10000"),
        ("run", {"strip_sources": 2**63}, "strip_sources = 9223372036854775808: must be below 2**63"),
        ("run", {"device": "gpu"}, "device = 'gpu': choose auto, cpu or cuda"),
        ("run", {"out": "s3://bucket/o"}, "not to a URL"),
        ("run", {"self": 1}, "unknown key 'self'"),
        ("run", {"model": "x" * 9999, "compile": False}, "compile = False: expected text in quotes"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_key_and_the_remedy(
    title: str, changes: dict[str, Any], message: str
) -> None:
    assert message in refusal(title, **changes)


def test_every_problem_is_in_one_message() -> None:
    text = refusal("training", epoch=3, epochs=0, frozen=["images"], noise="x", label="\udcff", network="colour")
    for problem in (
        "unknown key 'epoch' (did you mean epochs?); known keys are out, dataset, recipe",
        "epochs = 0: must be 1 or more",
        "frozen = ['images']: random weights would stay as they are",
        "noise = 'x'",
        r"label = '\udcff': must be UTF-8 text without NUL",
        "features = []: network 'colour' needs features",
    ):
        assert problem in text, problem
    assert text.count("label") == 2, "once as a key that is known, once with what is wrong"


def test_text_in_lists_and_tables_is_checked_too() -> None:
    text = refusal("training", options={"bn": ["a\0"], "deep": {"b": "\ud800"}})
    assert r"options.bn = 'a\x00': must be UTF-8" in text and r"options.deep.b = '\ud800': must be UTF-8" in text


def test_whole_numbers_are_fractions_and_lists_are_tuples() -> None:
    run = train_config(TRAIN | {"noise": 1, "bands": ["W1", "w3"]})
    assert run.noise == 1.0 and type(run.noise) is float and run.bands == ("w1", "w3")
    assert dataset_config(MAKERS["dataset"][1] | {"split": [8, 1, 1]}).split == (8.0, 1.0, 1.0)


def test_keywords_positions_and_replacements_are_checked_as_files_are() -> None:
    run = RunConfig("c", "i", "o", region=Cone(1, 2, 3))
    assert run == run_config(RUN | {"region": {"kind": "cone", "ra": 1, "dec": 2, "radius": 3}})
    assert pickle.loads(pickle.dumps(run)) == run and run_config(run.to_dict()) == run
    with pytest.raises(ConfigError, match="model = 4: expected text in quotes"):
        RunConfig("c", "i", "o", 4)
    with pytest.raises(ConfigError, match="workers = 0: must be from 1"):
        dataclasses.replace(run, workers=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.out = "elsewhere"
    with pytest.raises(ConfigError, match="more than 16 positional values"):
        RunConfig(*range(20))


@pytest.mark.integration
def test_a_moc_is_a_region_in_toml_and_in_python(tmp_path: Path) -> None:
    (tmp_path / "field.moc").write_text("5/1-3")
    (tmp_path / "run.toml").write_text(
        f"catalog = 'c'\nimages = 'i'\nout = 'o'\nregion = {{kind = 'moc', path = '{tmp_path}/field.moc'}}\n"
    )
    run = run_config(read_toml(tmp_path / "run.toml"))
    assert run == RunConfig("c", "i", "o", region=skyclass.read_moc(tmp_path / "field.moc"))
    assert isinstance(run.region, skyclass.Moc) and run.region.cover(5).tolist() == [1, 2, 3]
    (tmp_path / "field.moc").unlink()
    with pytest.raises(ConfigError, match="region = .*field.moc cannot be read: No such file"):
        run_config(read_toml(tmp_path / "run.toml"))


def test_a_number_that_python_does_not_read_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("workers = " + "9" * 5000)
    with pytest.raises(ConfigError, match="run.toml: not valid TOML: "):
        read_toml(tmp_path / "run.toml")


@pytest.mark.parametrize("cls", CONFIGURATIONS)
def test_every_key_is_described_everywhere(cls: type) -> None:
    document, schema = str(cls.__doc__), json_schema(cls)
    for key in keys(cls):
        assert len(key.text) > 10 and key.section, key
        start = document.index(f"\n{key.name} : ")
        assert key.text in " ".join(document[start:].split())
        assert " ".join(schema["properties"][key.name]["description"].split()) == key.text
        assert key.example is not None or (not key.required and key.default is not None), "templates need a value"
    assert schema["additionalProperties"] is False
    assert all(len(line) <= 120 for line in document.splitlines())


def test_help_of_the_public_configuration_is_readable() -> None:
    document = str(skyclass.RunConfig.__doc__)
    assert "precision : {'auto', 'fp32', 'bf16'}, default 'auto'\n    " in document
    assert "workers : int or None, default None\n    " in document
    assert document.index("Parameters\n----------") < document.index("Examples\n--------")
