"""`python -m trajmatch`: the same program as the `trajmatch` script."""

from __future__ import annotations

import sys

from trajmatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
