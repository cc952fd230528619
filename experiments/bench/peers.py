"""Other projects' rules, where they can be imported.

Neither ByzFL nor ByzPy is installed by this project: `pip install byzfl byzpy`.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from aggregathor.gars import GARS
from experiments.bench.measure import Run

# Takes a PyTorch tensor [n, d] and gives [d].
Aggregate = Callable[[Any], Any]
CHECKED_D = 1_000


def peer_rules(
    stack_nd: np.ndarray, f: int, brute_nd: np.ndarray, brute_f: int
) -> Iterator[tuple[str, str, Run]]:
    """Yields the label, our name of the rule, and a run of it for every peer that is there.

    Args:
      stack_nd: float32, for all rules but brute.
      f: the Byzantine rows among them.
      brute_nd: the stack for brute.
      brute_f: the Byzantine rows of that.
    """
    for peer, rules_of in (("ByzFL", _byzfl), ("ByzPy", _byzpy)):
        try:
            torch = importlib.import_module("torch")
            rules = rules_of(len(stack_nd), f, brute_f)
        except ImportError:
            continue
        torch.set_num_threads(int(os.environ.get("TF_NUM_INTRAOP_THREADS", "2")))
        for name, aggregate in rules.items():
            given_nd, given_f = (brute_nd, brute_f) if name == "brute" else (stack_nd, f)
            label = f"{peer} {name}"
            if not _agrees(name, aggregate, given_nd[:, :CHECKED_D], given_f, torch):
                label += " (its own definition)"
            yield label, name, functools.partial(aggregate, torch.from_numpy(given_nd))


def _byzfl(n: int, f: int, brute_f: int) -> dict[str, Aggregate]:
    aggregators = importlib.import_module("byzfl").aggregators
    return {
        "median": aggregators.Median(),
        "trimmed-mean": aggregators.TrMean(f=f),
        "meamed": aggregators.Meamed(f=f),
        "krum": aggregators.Krum(f=f),
        "multi-krum": aggregators.MultiKrum(f=f),  # the mean of n - f rows
        "brute": aggregators.MDA(f=brute_f),
    }


def _byzpy(n: int, f: int, brute_f: int) -> dict[str, Aggregate]:
    columns = importlib.import_module("byzpy.aggregators.coordinate_wise")
    vectors = importlib.import_module("byzpy.aggregators.geometric_wise")
    aggregators = {
        "median": columns.CoordinateWiseMedian(),
        "trimmed-mean": columns.CoordinateWiseTrimmedMean(f=f),
        "meamed": columns.MeanOfMedians(f=f),
        "krum": vectors.Krum(f=f),
        "multi-krum": vectors.MultiKrum(f=f, q=n - f - 2),
        "brute": vectors.MinimumDiameterAveraging(f=brute_f),
    }
    # It takes a sequence of gradients, as our rules take a stack of them.
    return {
        name: functools.partial(_aggregate_rows, rule.aggregate)
        for name, rule in aggregators.items()
    }


def _aggregate_rows(aggregate: Aggregate, rows: Any) -> Any:
    return aggregate(list(rows))


def _agrees(name: str, aggregate: Aggregate, stack_nd: np.ndarray, f: int, torch: Any) -> bool:
    """Whether a peer's rule gives what ours of that name does."""
    stack_nd = np.ascontiguousarray(stack_nd)
    theirs_d = aggregate(torch.from_numpy(stack_nd)).numpy()
    return np.allclose(theirs_d, GARS[name](stack_nd, f=f), rtol=1e-5, atol=1e-5)
