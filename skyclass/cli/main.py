"""The command line: each verb parses, makes a configuration, calls one function and gives an exit code.

0 done; 1 failed; 2 wrong usage or input; 3 done, with quarantined tiles or
sources for which the model gave no probabilities; 4 interrupted, run again to resume.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import click

from .. import __version__
from ..errors import ConfigError, Interrupted, NotStarted, SkyclassError, TableWarning
from ..locations import refuse_logins
from ..signals import leave, was_stopped
from ..text import printable, shell_command
from ..version import PACKAGE
from .catalogue import cutouts, query, recalibrate, report, verify
from .output import say
from .run import classify, gc, plan, publish
from .tools import demo, init, mock
from .training import dataset, evaluate, labels, train

UNUSABLE_PATHS = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EACCES}
"""What a path that was given wrong leads to; other errors of the system are failures."""


def main() -> None:
    """Run the command line and end the process with its exit code."""
    warnings.showwarning = _show_warning
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin make a busy machine five times slower
    print_any_character()
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except (click.exceptions.Abort, KeyboardInterrupt) as stop:  # click turns the one into the other
        _fail(Interrupted(stopped_text(stop, sys.argv[1:])))
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        say(*text.getvalue().rstrip().replace("\n\t", "\n  ").split("\n"), err=True)
        sys.exit(2)
    except SkyclassError as error:
        _fail(error)
    except OSError as error:
        if was_stopped():
            _fail(Interrupted(stopped_text(None, sys.argv[1:])))
        _fail((ConfigError if error.errno in UNUSABLE_PATHS else SkyclassError)(describe(error)))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning about a user's table as one line; others with their place in the code."""
    place = "" if issubclass(category, TableWarning) else f"{filename}:{lineno}: {category.__name__}: "
    say(f"skyclass: warning: {place}{message}", err=True)


RESUMED = ("classify", "train", "labels")
"""Commands that keep what they have done when they are stopped."""
STOPPED = "stopped; finished work is kept: run the same command again to resume"
NOT_RESUMED = "stopped; nothing is kept: the same command starts again from the beginning"


def stopped_text(stop: BaseException | None, words: Sequence[str]) -> str:
    """Return the message for a command line that was stopped, with what a run has noted about its commits."""
    notes = getattr(stop and (stop.__cause__ or stop), "__notes__", [])
    if notes:
        return f"stopped; {notes[0]}: the same command resumes the run"
    command = next((word for word in words if word in cli.commands), "")
    return STOPPED if command in RESUMED else NOT_RESUMED


def describe(error: OSError) -> str:
    """Return what failed and on which file."""
    if error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error) or repr(error)


def _fail(error: SkyclassError) -> NoReturn:
    lines = [error.message or repr(error), *(f"  {detail}" for detail in error.details)]
    if isinstance(error, Interrupted) and not isinstance(error, NotStarted):
        lines.append(f"  {shell_command(['skyclass', *sys.argv[1:]])}")
    leave("\n".join(map(printable, lines)), error.exit_code)


def print_any_character() -> None:
    """Escape characters that the encoding of the output lacks, and control characters in log messages.

    Warnings of astropy are not shown: they print cards of damaged headers unescaped, and skyclass names such faults.
    """
    warnings.filterwarnings("ignore", module=r"astropy\.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    logging.getLogger(PACKAGE).addHandler(handler)


class PrintableFormatter(logging.Formatter):
    """Messages in one line each, without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record."""
        return printable(record.getMessage())


class Commands(click.Group):
    """Commands that refuse any argument with a login in a URL, before one of them can print or store it."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Run the command that the arguments name."""
        words = sys.argv[1:] if args is None else list(args)
        for before, word in zip(["", *words], words, strict=False):
            name, value = _named(word, before)
            refuse_logins({name: value})
        return super().main(words, *others, **options)


def _named(word: str, before: str) -> tuple[str, str]:
    """Return the option and the value of a word of the command line, given the word before it."""
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return option, value
    return (before if before.startswith("-") else "argument"), word


COMPLETION = """\b
Completion in bash (or zsh, fish): add this line to ~/.bashrc
  eval "$(_SKYCLASS_COMPLETE=bash_source skyclass)"
"""


@click.group(cls=Commands, epilog=COMPLETION, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="skyclass")
def cli() -> None:
    """Classify whole infrared catalogues from their images."""


for command in (
    *(classify, plan, publish, gc),
    *(verify, recalibrate, query, report, cutouts),
    *(labels, dataset, train, evaluate),
    *(mock, demo, init),
):
    cli.add_command(command)
