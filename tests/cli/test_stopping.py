"""What a command that was stopped says about the work that is kept."""

from __future__ import annotations

import click
import pytest

from skyclass.cli.main import NOT_RESUMED, RESUMED, STOPPED, cli, stopped_text


@pytest.mark.parametrize(
    ("note", "text"),
    [
        ("", STOPPED),
        ("0 of 9 sources are committed", "stopped; 0 of 9 sources are committed: the same command resumes the run"),
    ],
    ids=["nothing-noted", "noted-by-a-run"],
)
def test_a_stopped_command_tells_the_committed_sources(monkeypatch: pytest.MonkeyPatch, note: str, text: str) -> None:
    def stopped(**_: object) -> None:
        stop = KeyboardInterrupt()
        if note:
            stop.add_note(note)
        raise stop

    monkeypatch.setattr(cli.commands["init"], "callback", stopped)
    with pytest.raises(click.exceptions.Abort) as caught:
        cli.main(["init", "run"], standalone_mode=False)
    assert stopped_text(caught.value, ["classify", "RUN.toml"]) == text


def test_only_commands_that_resume_promise_it() -> None:
    assert set(RESUMED) < set(cli.commands)
    for name in cli.commands:
        text = stopped_text(KeyboardInterrupt(), [name, "sky"])
        assert text == (STOPPED if name in RESUMED else NOT_RESUMED)
    assert stopped_text(None, []) == NOT_RESUMED
