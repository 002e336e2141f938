"""Options and files of the command line that are made from configurations."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import click
import pytest

from skyclass.cli.main import cli
from skyclass.cli.options import REGIONS, read_config, values_of_options
from skyclass.cli.templates import template, template_value, toml_text, toml_value
from skyclass.cli.tools import TEMPLATES
from skyclass.cli.training import settings_file_for_ranks
from skyclass.errors import ConfigError
from skyclass.run.config import RunConfig, run_config
from skyclass.settings import keys, read_toml
from skyclass.sky.regions import Box, Polygon
from skyclass.training.data.config import DatasetConfig, LabelsConfig
from skyclass.training.fit.recipe import TrainConfig, train_config

COMMANDS = {"classify": RunConfig, "plan": RunConfig, "train": TrainConfig, "labels": LabelsConfig}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_is_an_option_and_every_option_a_key(name: str) -> None:
    options = {p.name for p in cli.commands[name].params if isinstance(p, click.Option)}
    flags = {flag for p in cli.commands[name].params if isinstance(p, click.Option) for flag in p.opts}
    names = {key.name for key in keys(COMMANDS[name])}
    regions = {"box"} if name == "labels" else set(REGIONS) if "region" in names else set()
    assert options == names - {"region"} | regions
    assert flags == {"--" + option.replace("_", "-") for option in options}


@pytest.mark.parametrize("name", [None, *cli.commands])
def test_help_fits_80_columns_and_describes_every_option(name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    cli([name, "--help"] if name else ["--help"], standalone_mode=False)
    text = capsys.readouterr().out
    assert len(text) > 100 and all(len(line) <= 80 for line in text.splitlines()), text
    if name in COMMANDS:
        assert [line for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)][-1] == "Other options:"
        for key in keys(COMMANDS[name]):
            assert key.name == "region" or key.text in " ".join(text.split()), key.name


def test_values_of_options() -> None:
    given: dict[str, Any] = {
        "bands": "W1, w2", "composite": 'stretch="percentile",percentiles=[1,99]', "options": 'bn="all"',
        "flips": False, "noise": 0.5, "seed": None,
    }  # fmt: skip
    values = values_of_options(TrainConfig, given)
    run = train_config({"out": "m", "dataset": "d"} | values)
    assert run.bands == ("w1", "w2") and run.options == {"bn": "all"} and not run.flips and run.noise == 0.5
    assert run.composite == {"stretch": "percentile", "percentiles": [1, 99]} and "seed" not in values
    dataset = values_of_options(DatasetConfig, {"split": "7,2,x", "counts": "star=5"})
    assert dataset == {"split": [7.0, 2.0, "x"], "counts": {"star": 5}}
    for text in ("bn=all", "a=1}\nb={", "[" * 5000):
        with pytest.raises(ConfigError, match="--options .*: write KEY=VALUE"):
            values_of_options(TrainConfig, {"options": text})


def test_regions_of_options(tmp_path: Path) -> None:
    def region(**given: str) -> object:
        return values_of_options(RunConfig, given)["region"]

    assert region(box="350,10,-1,1") == Box(350, 10, -1, 1)
    assert region(polygon="0,0,2,0,1,2") == Polygon(((0, 0), (2, 0), (1, 2)))
    (tmp_path / "field.moc").write_text("3/5 7")
    moc = region(moc=str(tmp_path / "field.moc"))
    assert moc == run_config({"catalog": "c", "images": "i", "out": "o"} | {"region": moc}).region
    for given in ({"cone": "1,2"}, {"box": "1,2,3"}, {"polygon": "1,2,3,4,5"}):
        with pytest.raises(ConfigError, match=f"--{next(iter(given))} .*: write RA"):
            region(**given)
    with pytest.raises(ConfigError, match="--cone, --box: choose one region"):
        region(cone="1,2,3", box="1,2,3,4")


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("cone", "8:06:24,1:02:10,30arcmin", "8:06:24"),
        ("cone", "121.6,1d02m10s,30arcmin", "1d02m10s"),
        ("box", "8h06m24s,9h06m24s,1,2", "8h06m24s"),
        ("polygon", "0,0,2,0,1,2 10 3", "2 10 3"),
    ],
)
def test_a_sexagesimal_region_is_told_as_a_table_of_positions(option: str, text: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values_of_options(RunConfig, {option: text})
    assert str(caught.value) == (
        f"--{option} '{text}': angle looks sexagesimal ('{value}'); give decimal degrees, for example from "
        "astropy.coordinates.SkyCoord(ra, dec, unit=('hourangle', 'deg')).ra.deg"
    )


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [
        ("cone", "1,2,3parsec", "angle '3parsec' is not understood"),
        ("box", "1,2,3,91", "box dec_max is 91"),
        ("polygon", "0,0,1,0,2,x", "angle 'x' is not understood"),
    ],
)
def test_a_wrong_region_is_told_with_its_option(option: str, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^--{option} '{text}': {told}"):
        values_of_options(RunConfig, {option: text})


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_says_the_defaults(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, (cls, command) = tmp_path / f"{kind.upper()}.toml", TEMPLATES[kind]
    assert cli(["init", kind], standalone_mode=False) == 0
    required = {key.name: key.example for key in keys(cls) if key.required or key.usual}
    assert read_toml(file) == required and command in file.read_text()
    assert all(len(line) <= 80 or "=" in line for line in file.read_text().splitlines())
    uncommented = re.sub(r"^#(?=\w+ = )", "", file.read_text(), flags=re.M)
    every = tmp_path / "every.toml"
    every.write_text(uncommented)
    values = read_toml(every)
    assert list(values) == [key.name for key in keys(cls)]
    with_default = {key.name for key in keys(cls) if not key.required and key.default is not None}
    assert cls(**required | {name: values[name] for name in with_default}) == cls(**required)
    for key in keys(cls):
        if key.name == "tables":
            cls(**{name: value for name, value in required.items() if name != "labels"}, tables=values["tables"])
        elif key.default is None:
            cls(**required | ({"cluster": "local"} if kind == "train" else {}) | {key.name: values[key.name]})
    with pytest.raises(ConfigError, match="exists: give another name, or --overwrite"):
        cli(["init", kind], standalone_mode=False)
    assert cli(["init", kind, "--overwrite", "-o", str(every)], standalone_mode=False) == 0
    assert every.read_text() == file.read_text() == template(cls, command)


def test_settings_survive_a_file(tmp_path: Path) -> None:
    run = train_config(
        {"out": 'a "b"\\\x7fé\n', "dataset": "d", "options": {"a b": {"c": [1, 2.5, True]}}, "noise": 1e-30}
    )
    (tmp_path / "t.toml").write_text(toml_text(dataclasses.asdict(run)), "utf-8")
    assert TrainConfig(**read_toml(tmp_path / "t.toml")) == run
    assert toml_value(("w1", 2)) == '["w1", 2]'
    assert {template_value(key) for key in keys(RunConfig) if key.name == "workers"} == {4}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("classify", "give a table as --catalog {}"),
        ("plan", "give a table as --catalog {}"),
        ("dataset", "give a table as --labels {}"),
        (
            "train",
            "make a dataset of a table (skyclass dataset --labels {}), and give its folder as --dataset FOLDER",
        ),
        ("labels", "this command takes no table"),
    ],
)
def test_a_table_in_place_of_the_configuration_file_is_told_where_it_goes(
    name: str, remedy: str, tmp_path: Path
) -> None:
    words = "this argument is a configuration file (TOML), and the name is that of a table"
    for ending in ("csv", "fits", "FIT", "vot", "xml", "ecsv", "tbl", "parquet", "csv.gz"):
        table = tmp_path / f"my table.{ending}"
        table.write_bytes(b"ra,dec\n1,2\n" if ending != "fits" else bytes(2 * 10**6))
        with pytest.raises(ConfigError) as caught:
            cli([name, str(table)], standalone_mode=False)
        assert str(caught.value) == f"{table}: {words}; " + remedy.format(f"'{table}'")


def test_a_toml_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text("catalog = 'c'\nimages = 'i'\nout = 'o'\n")
    assert read_config(RunConfig, str(tmp_path / "run.txt"), {}) == RunConfig("c", "i", "o")
    (tmp_path / "run.txt").write_text("ra,dec\n1,2\n")
    with pytest.raises(ConfigError, match=r"run.txt: not valid TOML: .*; give a table as --catalog \S+run.txt$"):
        read_config(RunConfig, str(tmp_path / "run.txt"), {})
    (tmp_path / "run.toml").write_text("ra,dec\n1,2\n")
    with pytest.raises(ConfigError, match="run.toml: not valid TOML"):
        read_config(RunConfig, str(tmp_path / "run.toml"), {})


def test_completion_knows_the_options() -> None:
    from click.shell_completion import ShellComplete

    completion = ShellComplete(cli, {}, "skyclass", "_SKYCLASS_COMPLETE")
    found = [item.value for item in completion.get_completions(["classify"], "--strip")]
    assert found == ["--strip-sources"]
    assert [item.value for item in completion.get_completions(["classify", "--precision"], "b")] == ["bf16"]


def test_ranks_read_the_file_unless_options_change_the_training(tmp_path: Path) -> None:
    run = train_config({"out": str(tmp_path / "m"), "dataset": "d", "cluster": "local", "epochs": 3})
    assert settings_file_for_ranks(run, "TRAIN.toml", {"cluster": "local", "nodes": 2, "epochs": None}) == Path(
        "TRAIN.toml"
    )
    assert not list(tmp_path.iterdir())
    file = settings_file_for_ranks(run, "TRAIN.toml", {"epochs": 3})
    assert file == tmp_path / "m.settings.toml" == settings_file_for_ranks(run, None, {})
    assert train_config(read_toml(file)) == run
