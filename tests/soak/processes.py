"""Processes as /proc tells of them: whether they are there, and what they hold on to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# Of resident memory, from a job's second quarter to its last: allocators keep some of what they
# were given, and a page that is written for the first time in a process that was forked counts too.
MOST_GROWTH_KIB = 6 * 1024
_FEWEST = 8  # samples that tell something


def begun_at(process: int) -> int:
    """Returns when a process began, in the kernel's ticks.

    Raises:
      OSError: there is none.
    """
    return int(_stat(process)[19])


def state_of(process: int | None) -> str:
    """Returns the letter of a process's state, "gone" where there is none."""
    try:
        return "gone" if process is None else _stat(process)[0]
    except OSError:
        return "gone"


def _stat(process: int) -> list[str]:
    """Returns the fields of proc(5)'s stat from the third on."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


@dataclass(frozen=True)
class Sample:
    """A process at a moment; `made` rounds of the job were made."""

    made: int
    rss_kib: int
    descriptors: int
    threads: int


@dataclass
class Holdings:
    """What one process was seen to hold."""

    samples: list[Sample] = field(default_factory=list)

    def look(self, process: int, made: int) -> None:
        """Takes a sample of a process, if it is there and has memory of its own still."""
        folder = Path("/proc", str(process))
        try:
            lines = (folder / "status").read_text().splitlines()
            descriptors = len(list((folder / "fd").iterdir()))
        except OSError:  # it has ended
            return
        words = dict(line.split(":", 1) for line in lines)
        if "VmRSS" in words:
            rss_kib = int(words["VmRSS"].split()[0])
            self.samples.append(Sample(made, rss_kib, descriptors, int(words["Threads"])))

    def growth_kib(self) -> int:
        """Returns by how much resident memory has grown since the warm-up; 0 if nobody can tell."""
        early, late = self._parts()
        if not early or not late:
            return 0
        return min(each.rss_kib for each in late) - max(each.rss_kib for each in early)

    def leaks(self) -> list[str]:
        """Returns what it holds more of than after the warm-up, in words."""
        early, late = self._parts()
        if len(early) < _FEWEST or len(late) < _FEWEST:
            return []
        found = []
        if self.growth_kib() > MOST_GROWTH_KIB:
            found.append(f"{self.growth_kib()} KiB of memory")
        for name in ("descriptors", "threads"):
            # The least of many: some are open for a moment.
            more = min(getattr(each, name) for each in late) - max(
                getattr(each, name) for each in early
            )
            if more > 0:
                found.append(f"{more} {name}")
        return found

    def _parts(self) -> tuple[list[Sample], list[Sample]]:
        """Returns the samples of the second and of the last quarter of the rounds."""
        last = self.samples[-1].made if self.samples else 0
        early = [each for each in self.samples if last / 4 <= each.made < last / 2]
        late = [each for each in self.samples if each.made >= last * 3 / 4]
        return early, late
