"""What a command that was stopped says about the work that is kept."""

from __future__ import annotations

import click
import pytest

from skyclass.cli.main import STOPPED, cli, stopped_text


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
    assert stopped_text(caught.value) == text


def test_a_stop_outside_of_a_command_is_told() -> None:
    assert stopped_text(KeyboardInterrupt()) == STOPPED
