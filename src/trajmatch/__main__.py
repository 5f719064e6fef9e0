"""The program: `python -m trajmatch`, and the `trajmatch` script.

Signals and streams are taken care of before anything heavy is imported.
"""

from __future__ import annotations

import sys

from trajmatch.runtime.interruption import catch_signals, exit_on_signals
from trajmatch.runtime.streams import prepare_streams


def main() -> int:
    """Run the process's own command line; returns the exit code, as `trajmatch.cli.main`."""
    catch_signals()
    prepare_streams()
    from trajmatch.cli import main as run

    try:
        return run()
    finally:
        exit_on_signals()


if __name__ == "__main__":
    sys.exit(main())
