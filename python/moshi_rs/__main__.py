"""``python -m moshi_rs``: the command line."""

from __future__ import annotations

import sys

from moshi_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
