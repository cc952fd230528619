"""The rules in float64 NumPy, as slow and as plain as their definitions: what the tests believe.

NaN is a missing value. Ties, of distance or of score, go to the lower row.
"""

import itertools
import math

import numpy as np


def average(stack_nd, f=0):
    return np.asarray(stack_nd, np.float64).mean(axis=0)


def average_nan(stack_nd, f=0):
    return mean_of_present(np.asarray(stack_nd, np.float64))


# Coordinate-wise rules: each is a function of the present values of one coordinate, in row order.


def median(stack_nd, f=0, compat=None):
    middle = {None: middle_of, "aggregathor": upper_middle_of, "torch": lower_middle_of}[compat]
    return each_coordinate(stack_nd, f, middle, middle)


def trimmed_mean(stack_nd, f):
    return each_coordinate(stack_nd, f, lambda x: trimmed_mean_of(x, f), middle_of)


def meamed(stack_nd, f):
    return each_coordinate(
        stack_nd, f, lambda x: mean_nearest(x, middle_of(x), len(x) - f), middle_of
    )


def phocas(stack_nd, f):
    return each_coordinate(
        stack_nd, f, lambda x: mean_nearest(x, trimmed_mean_of(x, f), len(x) - f), middle_of
    )


def each_coordinate(stack_nd, f, rule, fallback):
    """``rule`` of the present values; ``fallback`` of 2f or fewer, 0 where that is not finite."""
    grad_d = np.zeros(np.shape(stack_nd)[1])
    for j, column in enumerate(np.asarray(stack_nd, np.float64).T):
        present = column[~np.isnan(column)]
        with np.errstate(invalid="ignore"):  # inf - inf
            if len(present) > 2 * f:
                grad_d[j] = rule(present)
            elif len(present) > 0 and np.isfinite(fallback(present)):
                grad_d[j] = fallback(present)
    return grad_d


def middle_of(x):
    return (lower_middle_of(x) + upper_middle_of(x)) / 2


def lower_middle_of(x):
    return np.sort(x)[(len(x) - 1) // 2]


def upper_middle_of(x):
    return np.sort(x)[len(x) // 2]


def trimmed_mean_of(x, f):
    return np.sort(x)[f : len(x) - f].mean()


def mean_nearest(x, center, keep):
    distance = np.where(x == center, 0.0, abs(x - center))
    return x[np.argsort(distance, kind="stable")[:keep]].mean()


# Distances, and the rules that choose rows by them.


def sq_distances(stack_nd):
    stack_nd = np.asarray(stack_nd, np.float64)
    n, d = stack_nd.shape
    bad = [is_lost(row) or np.isinf(row).any() for row in stack_nd]
    sq_dist_nn = np.zeros((n, n))
    for i, j in itertools.permutations(range(n), 2):
        both = ~np.isnan(stack_nd[i]) & ~np.isnan(stack_nd[j])
        if bad[i] or bad[j] or not both.any():
            sq_dist_nn[i, j] = np.inf
        else:
            differences = stack_nd[i, both] - stack_nd[j, both]
            sq_dist_nn[i, j] = (differences**2).sum() * d / both.sum()
    return sq_dist_nn


def is_lost(row):
    return np.sum(~np.isnan(row)) < len(row) / 2


def nearest_others(sq_dist_nn, i, rows):
    return sorted((j for j in rows if j != i), key=lambda j: sq_dist_nn[i, j])


def krum_scores(sq_dist_nn, f):
    n = len(sq_dist_nn)
    nearest = [nearest_others(sq_dist_nn, i, range(n))[: n - f - 2] for i in range(n)]
    return np.array([sq_dist_nn[i, nearest[i]].sum() for i in range(n)])


def krum(stack_nd, f):
    return multi_krum(stack_nd, f, m=1)


def multi_krum(stack_nd, f, m=None):
    stack_nd = np.asarray(stack_nd, np.float64)
    m = len(stack_nd) - f - 2 if m is None else m
    scores = krum_scores(sq_distances(stack_nd), f)
    rows = np.argsort(scores, kind="stable")[:m]
    return mean_of_present(stack_nd[rows])


def bulyan(stack_nd, f, variant="aggregathor"):
    stack_nd = np.asarray(stack_nd, np.float64)
    groups = {"aggregathor": bulyan_groups, "paper": bulyan_groups_of_paper}[variant]
    rows_of = groups(sq_distances(stack_nd), f)
    candidates_td = np.array([mean_of_present(stack_nd[rows], np.nan) for rows in rows_of])
    return each_coordinate(
        candidates_td,
        f,
        lambda x: mean_nearest(x, upper_middle_of(x), len(x) - 2 * f),
        upper_middle_of,
    )


def bulyan_groups(sq_dist_nn, f):
    n = len(sq_dist_nn)
    theta, m = n - 2 * f - 2, n - f - 2
    # The f + 1 farthest others count as 0.
    counted = [set(nearest_others(sq_dist_nn, i, range(n))[:m]) for i in range(n)]
    remaining = list(range(n))
    groups = []
    for k in range(theta):
        scores = {
            i: math.fsum(sq_dist_nn[i, j] for j in counted[i] if j in remaining) for i in remaining
        }
        groups.append(sorted(remaining, key=scores.get)[: m - k])
        remaining.remove(groups[-1][0])
    return groups


def bulyan_groups_of_paper(sq_dist_nn, f):
    n = len(sq_dist_nn)
    remaining = list(range(n))
    groups = []
    for _ in range(n - 2 * f):
        neighbours = max(1, len(remaining) - f - 2)
        scores = {}
        for i in remaining:
            nearest = nearest_others(sq_dist_nn, i, remaining)[:neighbours]
            scores[i] = math.fsum(sq_dist_nn[i, nearest])
        best = min(remaining, key=lambda i: scores[i])
        groups.append([best])
        remaining.remove(best)
    return groups


def brute(stack_nd, f):
    stack_nd = np.asarray(stack_nd, np.float64)
    rows = brute_subset(sq_distances(stack_nd), f)
    return mean_of_present(stack_nd[rows])


def brute_subset(sq_dist_nn, f):
    n = len(sq_dist_nn)
    subsets = map(list, itertools.combinations(range(n), n - f))  # in lexicographic order
    return min(subsets, key=lambda rows: sq_dist_nn[np.ix_(rows, rows)].max())


def geometric_median(stack_nd, f, nu=1e-6, tol=1e-6, max_iter=100):
    stack_nd = np.asarray(stack_nd, np.float64)
    bad_n = np.array([is_lost(row) or np.isinf(row).any() for row in stack_nd])
    rows_nd = stack_nd[~bad_n]
    v_d = median(stack_nd, f)

    def distances():
        return np.sqrt(np.nansum((rows_nd - v_d) ** 2, axis=1) / (~np.isnan(rows_nd)).mean(axis=1))

    floor = nu * np.sort(distances())[(len(rows_nd) - 1) // 2]
    for _ in range(max_iter):
        distance_n = np.maximum(floor, distances())
        least = distance_n.min()
        weight_n = least / distance_n if least > 0 else (distance_n == 0).astype(float)
        weight_nd = np.where(np.isnan(rows_nd), 0.0, weight_n[:, None])
        total_d = weight_nd.sum(axis=0)
        weighted_d = np.nansum(weight_nd * rows_nd, axis=0)
        next_d = np.divide(weighted_d, total_d, out=np.zeros_like(v_d), where=total_d > 0)
        step = np.linalg.norm(next_d - v_d)
        v_d = next_d
        if step <= tol * np.linalg.norm(v_d):
            break
    return v_d


def mean_of_present(rows_md, of_none=0.0):
    """Mean of the values that are not NaN, ``of_none`` where all are."""
    count_d = np.sum(~np.isnan(rows_md), axis=0)
    with np.errstate(invalid="ignore"):  # inf - inf
        sum_d = np.nansum(rows_md, axis=0)
    return np.divide(sum_d, count_d, out=np.full(len(sum_d), of_none), where=count_d > 0)


def nnm(stack_nd, f):
    """Nearest-neighbour mixing and the rows that each mean is of, in loops."""
    n, d = stack_nd.shape
    rows_nd, groups = np.empty((n, d)), []
    for i in range(n):
        distances = []
        for j in range(n):
            both = ~np.isnan(stack_nd[i]) & ~np.isnan(stack_nd[j])
            squares = np.sum((stack_nd[i] - stack_nd[j])[both] ** 2)
            distances.append(squares * d / both.sum() if i != j else 0.0)
        groups.append(sorted(range(n), key=lambda j, of=distances: (of[j], j))[: n - f])
        for c in range(d):
            present = [stack_nd[j, c] for j in groups[-1] if not np.isnan(stack_nd[j, c])]
            rows_nd[i, c] = np.mean(present) if present else np.nan
    return rows_nd, groups


def zeno(stack_nd, f, loss, x_d, gamma, b=None, rho=None):
    """The aggregate, the scores, and the rows that are kept, best first."""
    stack_nd = np.asarray(stack_nd, np.float64)
    b = f if b is None else b
    rho = gamma / 200 if rho is None else rho
    filled_nd, scores = np.nan_to_num(stack_nd, nan=0.0, posinf=np.inf, neginf=-np.inf), []
    for row, u_d in zip(stack_nd, filled_nd, strict=True):
        score = -math.inf
        if not is_lost(row):
            with np.errstate(invalid="ignore", over="ignore"):
                score = loss(x_d) - loss(x_d - gamma * u_d) - rho * np.sum(u_d**2)
        scores.append(score if math.isfinite(score) else -math.inf)
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: len(scores) - b]
    kept = [i for i in best if scores[i] > -math.inf]
    grad_d = sum((filled_nd[i] for i in kept), np.zeros(stack_nd.shape[1])) / max(1, len(kept))
    return grad_d, np.array(scores), kept
