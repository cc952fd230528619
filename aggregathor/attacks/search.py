"""Attacks that go as far as they can: mu + gamma p with the largest gamma that still passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aggregathor.attacks.base import View, attack, repeated
from aggregathor.attacks.moments import column_blocks, moments
from aggregathor.errors import UserError


@attack(
    "hidden-coordinate",
    form="omniscient",
    source="The Hidden Vulnerability of Distributed Learning in Byzantium",
    needs={
        "coordinate >= 0": lambda p: p.coordinate >= 0,
        'norm = "2" or norm = "inf"': lambda p: p.norm in ("2", "inf"),
        "gamma_max > 0": lambda p: p.gamma_max > 0,
    },
)
def hidden_coordinate(
    view: View, *, coordinate: int = 0, norm: str = "2", gamma_max: float = 1e20
) -> np.ndarray:
    r"""Hides one huge coordinate (or a shift of all) at a distance the rule tolerates.

    .. math:: \mu + \gamma e_j \; (\text{norm} = 2), \quad
       \mu + \gamma \mathbb{1} \; (\text{norm} = \infty)

    In d dimensions honest rows are about sqrt(d) deviations apart, and a rule that looks at
    distances lets all of that go into one coordinate. gamma is found by asking the rule: doubled
    until it is refused, then bisected to a relative 1e-4.

    Selected means that every Byzantine row has a usage above 0, or, for a rule that keeps fewer
    rows than there are copies (Krum keeps one), that nothing but copies has. A coordinate-wise
    rule gives its usage by coordinate: a row that is used everywhere except at j looks selected
    however large gamma is. So for norm "2" a rule that accepts even gamma_max is asked again
    about column j alone.

    Args:
      view: what the attackers know; needs `View.aggregate`.
      coordinate: j, for the norm "2".
      norm: the norm of the distances the rule bounds, "2" or "inf".
      gamma_max: where to stop; reached with a rule that keeps everything, like the average.
        1e20 leaves room in float32.
    Raises:
      UserError: the view does not tell which rule is in use, or has no such coordinate.
    Source: El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium,
      ICML 2018.
    """
    d = view.honest_hd.shape[1]
    if view.aggregate is None:
        raise UserError(
            "attack hidden-coordinate needs to ask the rule in use which rows it keeps, and the "
            "view has no `aggregate`. Give one, [n, d] -> (aggregate [d], usage [n]), or choose an "
            "attack that needs no rule, like min-max."
        )
    if coordinate >= d:
        raise UserError(
            f"attack hidden-coordinate needs coordinate < d; got coordinate={coordinate}, d={d}. "
            f"Give one from 0 to {d - 1}."
        )
    if view.num_byzantine == 0:
        return view.own_bd.copy()
    mu_d, sigma_d = moments(view.honest_hd)
    p_d = np.ones(d) if norm == "inf" else (np.arange(d) == coordinate).astype(np.float64)

    columns = slice(0, d)
    if norm == "2" and _selects(view, columns, mu_d, p_d)(gamma_max):
        columns = slice(coordinate, coordinate + 1)
    # How far honest rows are from their mean, in units of p: the rule tolerates about as much.
    scale = float(np.linalg.norm(sigma_d[columns]) / np.linalg.norm(p_d[columns]))
    gamma = largest(
        _selects(view, columns, mu_d, p_d), start=scale or 1.0, limit=gamma_max, tolerance=1e-4
    )
    return repeated(mu_d + gamma * p_d, view)


@attack(
    "min-max",
    form="omniscient",
    source="Manipulating the Byzantine",
    needs={'direction = "std", "unit" or "sign"': lambda p: p.direction in ("std", "unit", "sign")},
)
def min_max(view: View, *, direction: str = "std") -> np.ndarray:
    r"""Goes from the mean as far as stays within the largest distance between honest rows.

    .. math:: \mu + \gamma p, \quad \gamma = \max \{\gamma : \max_i \lVert \mu + \gamma p - x_i
       \rVert_2 \le \max_{i,j} \lVert x_i - x_j \rVert_2 \}

    p is :math:`-\sigma` ("std", population deviation), :math:`-\mu / \lVert \mu \rVert_2`
    ("unit") or :math:`-\mathrm{sign}(\mu)` ("sign").

    Args:
      view: what the attackers know.
      direction: which p.
    Source: Shejwalkar & Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021.
    """
    return _within_spread(view, direction, np.max)


@attack(
    "min-sum",
    form="omniscient",
    source="Manipulating the Byzantine",
    needs={'direction = "std", "unit" or "sign"': lambda p: p.direction in ("std", "unit", "sign")},
)
def min_sum(view: View, *, direction: str = "std") -> np.ndarray:
    r"""Like `min_max`, with the sum of the squared distances instead of the largest distance.

    .. math:: \mu + \gamma p, \quad \gamma = \max \{\gamma : \sum_i \lVert \mu + \gamma p - x_i
       \rVert_2^2 \le \max_i \sum_j \lVert x_i - x_j \rVert_2^2 \}

    p is :math:`-\sigma` ("std", population deviation), :math:`-\mu / \lVert \mu \rVert_2`
    ("unit") or :math:`-\mathrm{sign}(\mu)` ("sign").

    Args:
      view: what the attackers know.
      direction: which p.
    Source: Shejwalkar & Houmansadr, Manipulating the Byzantine: Optimizing Model Poisoning
      Attacks and Defenses for Federated Learning, NDSS 2021.
    """
    return _within_spread(view, direction, np.sum)


def largest(
    accepts: Callable[[float], bool], *, start: float, limit: float, tolerance: float
) -> float:
    """Returns the largest gamma <= limit that passes, to a relative tolerance.

    Doubles from ``start`` until one is refused, then bisects. What passes is taken to be an
    interval that begins at 0; 0 is returned where not even that passes.
    """
    if accepts(limit):
        return limit
    low, high = 0.0, min(start, limit)
    while high < limit and accepts(high):
        low, high = high, min(2 * high, limit)
    for _ in range(64):  # enough to fall from `start` to its last bit where all is refused
        if high - low <= tolerance * high:
            break
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low


def _selects(
    view: View, columns: slice, mu_d: np.ndarray, p_d: np.ndarray
) -> Callable[[float], bool]:
    """Returns gamma -> whether the rule in use, shown these columns, selects mu + gamma p."""
    honest_hd = view.honest_hd[:, columns]
    h = len(honest_hd)
    aggregate = view.aggregate
    assert aggregate is not None

    def selects(gamma: float) -> bool:
        row_d = mu_d[columns] + gamma * p_d[columns]
        _, usage_n = aggregate(np.concatenate([honest_hd, repeated(row_d, view)]))
        used_n = np.asarray(usage_n) > 0
        return bool(used_n[h:].all() or (used_n[h:].any() and not used_n[:h].any()))

    return selects


def _within_spread(view: View, direction: str, over_rows: Callable[..., np.ndarray]) -> np.ndarray:
    # With c_i = x_i - mu,
    #   ||mu + gamma p - x_i||^2 = ||c_i||^2 - 2 gamma <c_i, p> + gamma^2 ||p||^2,
    # so after one pass over the rows for their inner products a guess at gamma costs O(h).
    mu_d, sigma_d = moments(view.honest_hd)
    p_d = _directed(direction, mu_d, sigma_d)
    gram_hh, along_h = _products(view.honest_hd, mu_d, p_d)
    sq_norm_h, sq_norm_p = np.diag(gram_hh), p_d @ p_d
    if sq_norm_p == 0:
        return repeated(mu_d, view)
    sq_dist_hh = np.maximum(sq_norm_h[:, np.newaxis] + sq_norm_h - 2 * gram_hh, 0)
    spread = over_rows(sq_dist_hh, axis=1).max()

    def accepts(gamma: float) -> bool:
        return over_rows(sq_norm_h - 2 * gamma * along_h + gamma**2 * sq_norm_p) <= spread

    # spread is a squared distance, and no row is farther from mu than its root D: by the triangle
    # inequality nothing beyond (D + D) / ||p|| passes.
    limit = 2 * np.sqrt(spread / sq_norm_p)
    gamma = largest(accepts, start=limit / 2, limit=limit, tolerance=1e-12)
    return repeated(mu_d + gamma * p_d, view)


def _directed(direction: str, mu_d: np.ndarray, sigma_d: np.ndarray) -> np.ndarray:
    if direction == "std":
        return -sigma_d
    if direction == "sign":
        return -np.sign(mu_d)
    norm = np.linalg.norm(mu_d)
    return -mu_d / norm if norm > 0 else mu_d


def _products(
    honest_hd: np.ndarray, mu_d: np.ndarray, p_d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inner products of the centred rows with each other [h, h] and with p [h]."""
    h, d = honest_hd.shape
    gram_hh, along_h = np.zeros((h, h)), np.zeros(h)
    for block in column_blocks(d):
        centred_hd = honest_hd[:, block] - mu_d[block]
        gram_hh += centred_hd @ centred_hd.T
        along_h += centred_hd @ p_d[block]
    return gram_hh, along_h
