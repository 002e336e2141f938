"""The mutants of a small file: each change is the one intended, and a seed draws the same sample again."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.mutate import mutants_of, sample

SOURCE = '''
@lru_cache(5)
@option(7)
def margin(p: "1 | 2", kept: bool = True) -> float:
    """Return 1 + 1."""
    ä = "ü" + str(2 * 3)
    print(ä, isinstance(p, tuple | list))
    if not kept and len(p) > 1:
        return p[-1] - p[-2]
    return 0.5 if kept else 1.0
'''


def test_each_mutant_changes_one_expression_and_is_code() -> None:
    mutants = list(mutants_of("margin.py", SOURCE))
    changes = {(mutant.old, mutant.new) for mutant in mutants}
    assert changes >= {
        ("p[-1] - p[-2]", "p[-1] + p[-2]"),
        ("len(p) > 1", "len(p) >= 1"),
        ("not kept and len(p) > 1", "(not kept or len(p) > 1)"),
        ("not kept", "kept"),
        ("True", "False"),
        ("0.5", "1.5"),
        ("0.5 if kept else 1.0", "1.0 if kept else 0.5"),
        ("2 * 3", "2 / 3"),
        ("7", "8"),
        ("print(ä, isinstance(p, tuple | list))", "None"),
    }
    assert not {'"ü" + str(2 * 3)', "tuple | list", "5"} & set(dict(changes))
    for mutant in mutants:
        compile(mutant.apply(SOURCE), "margin.py", "exec")
        assert SOURCE[mutant.start : mutant.stop] == mutant.old != mutant.new
        assert '"""Return 1 + 1."""' in mutant.apply(SOURCE) and '"1 | 2"' in mutant.apply(SOURCE)


def test_a_seed_draws_the_same_mutants_again(tmp_path: Path) -> None:
    (tmp_path / "skyclass" / "run").mkdir(parents=True)
    (tmp_path / "skyclass" / "run" / "margin.py").write_text(SOURCE)
    assert sample(tmp_path, ["run"], 5, 1) == sample(tmp_path, ["run"], 5, 1) != sample(tmp_path, ["run"], 5, 2)
