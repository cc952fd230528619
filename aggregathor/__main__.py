"""``python -m aggregathor`` is the command ``aggregathor``."""

import sys

from aggregathor.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
