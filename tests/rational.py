"""The rules in rational numbers: no rounding, no underflow, no overflow. For complete stacks.

Ties, of distance or of score, go to the lower row.
"""

from fractions import Fraction

import numpy as np


def of(stack_nd):
    """The same numbers, exactly."""
    return [[Fraction(float(x)) for x in row] for row in stack_nd]


def mean(values):
    return sum(values, Fraction(0)) / len(values)


def middle(x):
    return mean(sorted(x)[(len(x) - 1) // 2 : len(x) // 2 + 1])


def nearest(x, center, keep):
    return mean([x[i] for i in sorted(range(len(x)), key=lambda i: abs(x[i] - center))[:keep]])


def trimmed(x, f):
    return mean(sorted(x)[f : len(x) - f])


COORDINATE_WISE = {
    "average": lambda x, f: mean(x),
    "average-nan": lambda x, f: mean(x),
    "median": lambda x, f: middle(x),
    "median-aggregathor": lambda x, f: sorted(x)[len(x) // 2],
    "median-torch": lambda x, f: sorted(x)[(len(x) - 1) // 2],
    "trimmed-mean": trimmed,
    "meamed": lambda x, f: nearest(x, middle(x), len(x) - f),
    "phocas": lambda x, f: nearest(x, trimmed(x, f), len(x) - f),
}


def sq_distances(rows):
    return [
        [sum(((a - b) ** 2 for a, b in zip(x, y, strict=True)), Fraction(0)) for y in rows]
        for x in rows
    ]


def score(sq, i, rows, neighbours):
    return sum(sorted(sq[i][j] for j in rows if j != i)[:neighbours], Fraction(0))


def krum(sq, f, m):
    n = len(sq)
    scores = [score(sq, i, range(n), n - f - 2) for i in range(n)]
    return [sorted(range(n), key=lambda i: scores[i])[:m]]


def brute(sq, f):
    """Grows the subset row by row; a subset is as bad as its farthest two rows."""
    n = len(sq)
    best = None

    def grow(chosen, diameter, first):
        nonlocal best
        if best is not None and diameter >= best[0]:
            return
        if len(chosen) == n - f:
            best = diameter, chosen
            return
        for i in range(first, n):
            grow([*chosen, i], max([diameter, *(sq[i][j] for j in chosen)]), i + 1)

    grow([], Fraction(0), 0)
    return [best[1]]


def bulyan(sq, f):
    n = len(sq)
    others = [
        sorted((j for j in range(n) if j != i), key=lambda j, i=i: sq[i][j]) for i in range(n)
    ]
    rows, groups = list(range(n)), []
    for k in range(n - 2 * f - 2):
        scores = {
            i: sum((sq[i][j] for j in others[i][: n - f - 2] if j in rows), Fraction(0))
            for i in rows
        }
        groups.append(sorted(rows, key=scores.get)[: n - f - 2 - k])
        rows.remove(groups[-1][0])
    return groups


def bulyan_paper(sq, f):
    rows, groups = list(range(len(sq))), []
    for _ in range(len(sq) - 2 * f):
        scores = {i: score(sq, i, rows, max(1, len(rows) - f - 2)) for i in rows}
        groups.append([min(rows, key=scores.get)])
        rows.remove(groups[-1][0])
    return groups


SELECTING = {
    "krum": lambda sq, f: krum(sq, f, 1),
    "multi-krum": lambda sq, f: krum(sq, f, len(sq) - f - 2),
    "multi-krum-1": lambda sq, f: krum(sq, f, 1),
    "multi-krum-2": lambda sq, f: krum(sq, f, 2),
    "brute": brute,
    "bulyan": bulyan,
    "bulyan-paper": bulyan_paper,
}


def aggregate(case, rows, f, rounded):
    """What a rule gives; Bulyan's candidates are ``rounded`` to the dtype, as it has them."""
    if case in COORDINATE_WISE:
        return [COORDINATE_WISE[case](list(column), f) for column in zip(*rows, strict=True)]
    groups = SELECTING[case](sq_distances(rows), f)
    means = [[mean(column) for column in zip(*(rows[i] for i in g), strict=True)] for g in groups]
    if not case.startswith("bulyan"):
        return means[0]
    columns = zip(*([rounded(x) for x in row] for row in means), strict=True)
    return [nearest(x, sorted(x)[len(x) // 2], len(x) - 2 * f) for x in columns]


def rounded_to(kind):
    """Rounds a number to float32 or float64, once, subnormal ones too."""
    bits, least = (24, -149) if kind == np.float32 else (53, -1074)

    def to(x):
        if x == 0:
            return Fraction(0)
        exponent = max((abs(x.numerator).bit_length() - x.denominator.bit_length()) - bits, least)
        # The guess is off by one at most.
        while abs(x) / Fraction(2) ** exponent >= 2**bits:
            exponent += 1
        while exponent > least and abs(x) / Fraction(2) ** exponent < 2 ** (bits - 1):
            exponent -= 1
        unit = Fraction(2) ** exponent
        return round(x / unit) * unit

    return to
