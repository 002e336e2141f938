"""What is printed about a training: its start, its epochs, and the time that is left."""

from __future__ import annotations

from typing import Any

import pytest

from skyclass.training import progress as module
from skyclass.training.progress import TrainingStart, duration_text, epoch_text, start_text, training_progress

START: dict[str, Any] = {
    "network": "iicnet", "start_from": "", "recipe": "paper", "epochs": 200, "patience": 0, "inputs": ["images"],
    "n_train": 1659, "steps": 20, "finished_epochs": 0, "finished_steps": 0,
}  # fmt: skip
RECORD: dict[str, Any] = {
    "loss": 0.5, "val_loss": 0.4, "val_balanced_accuracy": 0.9, "val_ece": 0.1, "images_per_s": 1234.5, "best": False,
}  # fmt: skip
NUMBERS = "loss 0.5000, validation loss 0.4000, balanced accuracy 0.9000, ECE 0.1000, 1,234 images/s"


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "training iicnet from random weights: 200 epochs, 1,659 images, recipe paper"),
        (
            {"start_from": "iicnet-mock", "recipe": "modern", "epochs": 1, "n_train": 1},
            "training iicnet from iicnet-mock: 1 epoch, 1 image, recipe modern",
        ),
        (
            {"network": "colour", "inputs": ["photometry"], "finished_epochs": 12},
            "training colour from random weights: 200 epochs, 1,659 sources, recipe paper; going on after epoch 12",
        ),
        (
            {"finished_epochs": 12, "finished_steps": 5},
            "training iicnet from random weights: 200 epochs, 1,659 images, recipe paper; "
            "going on in epoch 13 after step 5 of 20",
        ),
    ],
    ids=["new", "from-a-bundle", "resumed", "resumed-in-an-epoch"],
)
def test_the_first_line_tells_the_training(changes: dict[str, Any], line: str) -> None:
    assert start_text(START | changes) == line


@pytest.mark.parametrize(
    ("changes", "epoch", "passed_s", "left"),
    [
        ({}, 29, 29 * 20, ", about 57 min left"),
        ({}, 1, 20, ", about 66 min left"),
        ({}, 199, 199 * 20, ", about 20 s left"),
        ({}, 200, 4000, ""),
        ({"finished_epochs": 28}, 29, 10, ", about 28 min left"),
        ({"finished_epochs": 28, "finished_steps": 10}, 29, 10, ", about 57 min left"),
        ({"patience": 5}, 29, 29 * 20, ", at most about 57 min left"),
    ],
)
def test_an_epoch_is_told_with_the_time_left(
    clock: Clock, changes: dict[str, Any], epoch: int, passed_s: float, left: str
) -> None:
    start = TrainingStart(START | changes, clock.now)
    clock.now += passed_s
    assert epoch_text(RECORD | {"epoch": epoch}, start) == f"epoch {epoch} of 200: {NUMBERS}{left}"


def test_the_rate_is_that_of_the_last_start(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Ranks that start again repeat the first event."""
    with training_progress() as progress:
        progress(START)
        clock.now += 5000
        progress(START | {"finished_epochs": 100})
        clock.now += 30
        progress(RECORD | {"epoch": 101, "best": True})
    assert capsys.readouterr().err.endswith("images/s (best so far), about 50 min left\n")


def test_an_epoch_without_a_start_is_told_without_the_time() -> None:
    assert epoch_text(RECORD | {"epoch": 3}) == f"epoch 3: {NUMBERS}"


def test_events_become_lines_of_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress() as progress:
        progress(START | {"epochs": 2})
        progress({"epoch": 1, "epochs": 2, "step": 1, "steps": 20, "images_per_s": 9.0})
        clock.now += 60
        progress(RECORD | {"epoch": 1})
    assert progress.has_trained
    assert capsys.readouterr().err.splitlines() == [
        "training iicnet from random weights: 2 epochs, 1,659 images, recipe paper",
        f"epoch 1 of 2: {NUMBERS}, about 60 s left",
    ]


def test_a_training_without_events_was_finished_before(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress() as progress:
        pass
    assert not progress.has_trained
    assert capsys.readouterr().err == (
        "already trained: an earlier run has finished this training, and nothing is left to do\n"
    )


@pytest.mark.parametrize(("seconds", "text"), [(89.4, "89 s"), (91, "2 min"), (5399, "90 min"), (5401, "1.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
