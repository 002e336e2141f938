"""The command line, `skyclass` and `python -m skyclass`: signals are handled before the slow imports begin."""

import os

from .errors import ConfigError
from .signals import NOT_BEGUN, leave, stop_on_signals


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        stop_on_signals()
        if os.path.expanduser("~") == "~":  # astropy and Dask cannot be imported then
            leave(f"HOME is not set and uid {os.getuid()} has no passwd entry: set HOME", ConfigError.exit_code)
        from .cli.main import main as run_command
    except KeyboardInterrupt:
        leave(NOT_BEGUN)
    run_command()


if __name__ == "__main__":
    main()
