"""``python -m aggregathor`` is the command ``aggregathor``."""

import sys

from aggregathor.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
