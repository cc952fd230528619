"""The examples, and what is left of one without its lines of AggregaThor."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.py")))
MARK = "# aggregathor"


def ordinary(name):
    """Returns the example as it was before AggregaThor came in: without the lines that it marks."""
    lines = (FOLDER / f"{name}.py").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.rstrip().endswith(MARK))
