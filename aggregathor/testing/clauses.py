"""The contract, clause by clause: each yields what is wrong with a rule, nothing if all is well."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.testing.stacks import (
    HOSTILE,
    LARGE_D,
    ODD_DS,
    POWERS,
    RANDOM_BITS,
    ROUNDING,
    D,
    attacked,
    cast,
    far,
    honest_rows,
    is_nan,
    lose_some,
    rounding,
    told,
    truth,
    unequal,
)
from aggregathor.testing.subject import RaisedError, SkippedError, Subject, in_short
from aggregathor.testing.threads import digests_by_threads

Clause = Callable[[Subject], list[str]]
CLAUSES: dict[str, Clause] = {}

NOT_ROBUST = "the rule promises nothing under attack"
NAN_SPREADS = "the rule propagates NaN"


def _clause(name: str) -> Callable[[Callable[[Subject], Iterator[str]]], Clause]:
    """Adds a generator of failures to ``CLAUSES``; it ends where the rule raises.

    Where it raises SkippedError, the subject keeps the reason.
    """

    def register(function: Callable[[Subject], Iterator[str]]) -> Clause:
        @functools.wraps(function)
        def clause(subject: Subject) -> list[str]:
            failures: list[str] = []
            try:
                failures.extend(function(subject))  # what comes before an error is kept
            except RaisedError as error:
                failures.append(str(error))
            except SkippedError as reason:
                subject.skipped[name] = str(reason)
            return failures

        CLAUSES[name] = clause
        return clause

    return register


@_clause("shape and dtype")
def _shape_and_dtype(subject: Subject) -> Iterator[str]:
    """[n, d] gives [d] of the same dtype."""
    rng = subject.rng()
    for dtype in subject.dtypes:
        for n, f in subject.smallest():
            for d in (1, D):
                stack_nd = honest_rows(rng, n, d, dtype)
                grad_d = subject(stack_nd, f)
                if grad_d.dtype != stack_nd.dtype:
                    yield f"{told(stack_nd, f)}: expected {dtype}, found {grad_d.dtype}"


@_clause("any number of coordinates")
def _any_d(subject: Subject) -> Iterator[str]:
    """Every coordinate is computed, those past the last full vector register too."""
    rng = subject.rng()
    for n, f in [*subject.smallest(), subject.roomy()]:
        for d in (*ODD_DS, LARGE_D):
            for dtype in subject.dtypes[: 1 if d == LARGE_D else 2]:
                if subject.robust:
                    stack_nd = attacked(rng, n, f, d, dtype, 1e30)
                else:
                    stack_nd = honest_rows(rng, n, d, dtype)
                yield from far(subject(stack_nd, f), truth(d), told(stack_nd, f))


@_clause("few rows")
def _few_rows(subject: Subject) -> Iterator[str]:
    """One to four rows are enough where the condition says so."""
    rng = subject.rng()
    for n in range(1, 5):
        for f in (0, 1):
            if n < subject.condition.least_n(f) or (f and not subject.condition.a):
                continue
            for dtype in subject.dtypes:
                stack_nd = honest_rows(rng, n, D, dtype)
                yield from far(subject(stack_nd, f), truth(D), told(stack_nd, f))


@_clause("identical rows")
def _identical_rows(subject: Subject) -> Iterator[str]:
    """Rows that are all the same give that row."""
    rng = subject.rng()
    for n, f in [*subject.smallest(), subject.roomy()]:
        for dtype in subject.dtypes:
            stack_nd = np.repeat(honest_rows(rng, 1, D, dtype), n, axis=0)
            case = f"{told(stack_nd, f)}, all rows the same"
            yield from unequal(subject(stack_nd, f), stack_nd[0], case, rounding(D, dtype))


@_clause("too few gradients")
def _too_few(subject: Subject) -> Iterator[str]:
    """A ValueError where n is too small for f."""
    for f in (0, 1, 2) if subject.condition.a else (0,):
        n = subject.condition.least_n(f) - 1
        if n < 0:
            continue
        case = told(np.ones((n, D), np.float32), f)
        subject.num_stacks += 1
        try:
            subject.gar(tf.ones([n, D]), f=f, **subject.parameters)
        except ValueError:
            continue
        except Exception as error:
            found = in_short(error)
        else:
            found = "a gradient"
        yield f"{case}: expected ValueError because {subject.condition} is not met, found {found}"


@_clause("input unchanged")
def _input_unchanged(subject: Subject) -> Iterator[str]:
    """Neither a tensor nor an array is written to; an array may be read-only."""
    rng = subject.rng()
    (n, f), *_ = subject.smallest()
    for dtype in subject.dtypes:
        stack_nd = honest_rows(rng, n, D, dtype)
        before = stack_nd.tobytes()
        for given in (tf.constant(stack_nd), stack_nd.copy()):
            kind = "an array" if isinstance(given, np.ndarray) else "a tensor"
            subject.run(subject.gar, given, f)
            if np.asarray(given).tobytes() != before:
                yield f"{told(stack_nd, f)}: expected {kind} to stay as it was, found it changed"
        read_only = stack_nd.copy()
        read_only.setflags(write=False)
        subject.run(subject.gar, read_only, f, ", a read-only array")


@_clause("same bits again")
def _same_bits_again(subject: Subject) -> Iterator[str]:
    """The same stack gives the same bits each time."""
    rng = subject.rng()
    (n, f), *_ = subject.smallest()
    for dtype in subject.dtypes:
        for d in (D, LARGE_D):
            stack_nd = honest_rows(rng, n, d, dtype)
            first, second = subject(stack_nd, f), subject(stack_nd, f)
            if first.tobytes() != second.tobytes():
                yield f"{told(stack_nd, f)}: expected the same bits twice, found others"


@_clause("row order")
def _row_order(subject: Subject) -> Iterator[str]:
    """Reordering the rows changes the result by rounding at most, where nothing ties.

    f rows stand apart, so that a rule that looks for the tightest n - f rows has one choice only.
    """
    rng = subject.rng()
    for dtype in subject.dtypes:
        if dtype in ("float16", "bfloat16"):
            continue  # of so few bits that ties are common
        for n, f in [*subject.smallest(), subject.roomy()]:
            stack_nd = attacked(rng, n, f, D, dtype, 0.0)
            if subject.tolerates_missing:
                stack_nd = lose_some(rng, stack_nd)
            grad_d = subject(stack_nd, f)
            for _ in range(3):
                again_d = subject(rng.permutation(stack_nd), f)
                case = f"{told(stack_nd, f)}, rows reordered"
                yield from unequal(again_d, grad_d, case, rounding(D, dtype))


@_clause("any number of threads")
def _any_threads(subject: Subject) -> Iterator[str]:
    """The same bits on one thread and on four, each in a process of its own.

    Only where another process can import the rule: not for a lambda or a function in a function.
    """
    if not subject.threads:
        raise SkippedError("not asked for")
    one, four = digests_by_threads(subject, (1, 4))
    subject.num_stacks += len(one)
    for case in one:
        if one[case] != four[case]:
            yield f"{case}: expected the same bits on 1 and on 4 threads, found others"


@_clause("ties")
def _ties(subject: Subject) -> Iterator[str]:
    """Ties go to the lower row, as far as that is seen from outside.

    Of a few rows in equal steps on a line, a rule that takes the lower of two equally good ones
    gives no more when they ascend than when they descend; one that never ties gives the same. Of
    many rows that is not so: where Bulyan lets the lower row leave first, the higher ones remain.
    """
    if not subject.ties:
        raise SkippedError("not asked for")
    sign_d = np.sign(truth(D))
    steps_d = sign_d * 2.0 ** (np.arange(D) % 3)  # whole numbers: exact in every dtype
    for dtype in subject.dtypes:
        for n, f in subject.smallest():
            stack_nd = cast(np.arange(n)[:, None] * steps_d, dtype)
            ascending_d = subject(stack_nd, f).astype(np.float64) * sign_d
            descending_d = subject(stack_nd[::-1], f).astype(np.float64) * sign_d
            most_d = descending_d + n * np.abs(steps_d) * ROUNDING[dtype]
            off = ~(ascending_d <= most_d)
            if off.any():
                worst = np.flatnonzero(off)[0]
                yield (
                    f"{told(stack_nd, f)}, rows in equal steps: expected no more when they ascend "
                    f"than the {descending_d[worst]:.6g} of when they descend, found "
                    f"{ascending_d[worst]:.6g} in coordinate {worst} ({off.sum()} such)"
                )


@_clause("scale and shift")
def _scale_and_shift(subject: Subject) -> Iterator[str]:
    """Rows c times as long give c times the result; rows moved by t give it moved by t.

    Within a hundredth of the rows' spread, for rules that iterate. Powers of two for c, which round
    nothing, and some so far from 1 that a constant of a size of its own shows; half types round too
    much to be moved.
    """
    if not subject.equivariant:
        raise SkippedError("not asked for")
    rng = subject.rng()
    for dtype in subject.dtypes:
        within_d = np.maximum(1e-4 * np.abs(truth(D)), rounding(D, dtype))
        for n, f in [*subject.smallest(), subject.roomy()]:
            stack_nd = honest_rows(rng, n, D, dtype)
            grad_d = subject(stack_nd, f).astype(np.float64)
            for power in POWERS[dtype]:
                scaled_d = subject(cast(stack_nd.astype(np.float64) * 2.0**power, dtype), f)
                case = f"{told(stack_nd, f)}, rows times 2^{power}"
                yield from unequal(scaled_d, grad_d * 2.0**power, case, within_d * 2.0**power)
            if dtype in ("float16", "bfloat16"):
                continue
            shift_d = -3 * np.round(truth(D))
            moved_d = subject(cast(stack_nd + shift_d, dtype), f)
            case = f"{told(stack_nd, f)}, rows moved by -3 times their mean"
            yield from unequal(moved_d, grad_d + shift_d, case, within_d)


@_clause("inside tf.function")
def _inside_function(subject: Subject) -> Iterator[str]:
    """The same result eagerly and in a graph, with d known or not; not for rules in NumPy."""
    rng = subject.rng()
    (n, f), *_ = subject.smallest()
    in_tensorflow = True

    def eager(stack_nd: tf.Tensor, **parameters: Any) -> Any:
        nonlocal in_tensorflow
        grad_d = subject.gar(stack_nd, **parameters)
        in_tensorflow = isinstance(grad_d, tf.Tensor)
        return grad_d

    for dtype in subject.dtypes:
        stack_nd = honest_rows(rng, n, D, dtype)
        grad_d = subject.run(eager, tf.constant(stack_nd), f)
        if not in_tensorflow:
            raise SkippedError("the rule is not in TensorFlow")
        for d in (D, None):
            where = f", in tf.function of shape [{n}, {d}]"
            in_graph_d = subject.run(_traced(subject.gar, d), tf.constant(stack_nd), f, where)
            case = told(stack_nd, f) + where
            yield from unequal(in_graph_d, grad_d, case, rounding(D, dtype))


def _traced(gar: Callable[..., Any], d: int | None) -> Callable[..., Any]:
    """The rule inside a graph that knows that many coordinates, None for any number."""

    def in_graph(stack_nd: tf.Tensor, **parameters: Any) -> tf.Tensor:
        traced = tf.function(lambda given_nd: gar(given_nd, **parameters))
        signature = tf.TensorSpec([stack_nd.shape[0], d], stack_nd.dtype)
        return traced.get_concrete_function(signature)(stack_nd)

    return in_graph


@_clause("f hostile rows")
def _hostile_rows(subject: Subject) -> Iterator[str]:
    """Whatever f rows hold, the result is finite and near the honest rows."""
    if not subject.robust:
        raise SkippedError(NOT_ROBUST)
    rng = subject.rng()
    for dtype in subject.dtypes:
        for n, f in [*subject.smallest(), subject.roomy()]:
            for name, value in HOSTILE.items():
                stack_nd = attacked(rng, n, f, D, dtype, value)
                case = f"{told(stack_nd, f)}, {f} rows of {name}"
                yield from far(subject(stack_nd, f), truth(D), case)


@_clause("infinities are values")
def _infinities(subject: Subject) -> Iterator[str]:
    """f rows of infinities here and there count as rows of huge values, or as rows lost altogether.

    Huge values are what they are to a rule that sorts each coordinate or chooses among the rows. A
    rule that weighs the rows by their distance may give infinite ones no weight, as if lost. None
    takes the infinities alone for missing and keeps the rest of those rows.
    """
    if not subject.robust:
        raise SkippedError(NOT_ROBUST)
    rng = subject.rng()
    where = slice(None, None, 4)
    signs = np.where(np.arange(D) % 8, -1.0, 1.0)[where]
    for dtype in subject.dtypes:
        # Two rows more than needed: of two rows left, any point between is a geometric median.
        within_d = np.maximum(1e-3 * np.abs(truth(D)), rounding(D, dtype))
        for n, f in [*((n + 2, f) for n, f in subject.smallest()), subject.roomy()]:
            infinite_nd = honest_rows(rng, n, D, dtype)
            huge_nd, lost_nd = infinite_nd.copy(), infinite_nd.copy()
            infinite_nd[:f, where] = np.inf * signs
            huge_nd[:f, where] = cast(1e30 * signs, dtype)
            lost_nd[:f] = np.nan
            order = rng.permutation(n)
            grad_d = subject(infinite_nd[order], f)
            case = f"{told(infinite_nd, f)}, infinities in {f} rows, taken for 1e30"
            found = list(unequal(grad_d, subject(huge_nd[order], f), case, within_d))
            if found and subject.tolerates_missing:
                lost_d = subject(lost_nd[order], f)
                if not list(unequal(grad_d, lost_d, case, within_d)):
                    continue
            yield from found


@_clause("lost coordinates")
def _lost_coordinates(subject: Subject) -> Iterator[str]:
    """With a tenth of the values lost at random, the result is finite and near the rows.

    Or 0 in the few coordinates where the rows that a rule chooses have lost the value.
    """
    if not subject.tolerates_missing:
        raise SkippedError(NAN_SPREADS)
    rng = subject.rng()
    for dtype in subject.dtypes:
        for n, f in [*subject.smallest(), subject.roomy()]:
            stack_nd = lose_some(rng, honest_rows(rng, n, D, dtype))
            case = f"{told(stack_nd, f)}, a tenth of the values NaN"
            lost_d = is_nan(stack_nd).any(axis=0)
            yield from far(subject(stack_nd, f), truth(D), case, zero_allowed=lost_d)


@_clause("a coordinate lost by all")
def _coordinate_lost_by_all(subject: Subject) -> Iterator[str]:
    """It becomes 0, no update."""
    if not subject.tolerates_missing:
        raise SkippedError(NAN_SPREADS)
    rng = subject.rng()
    for dtype in subject.dtypes:
        for n, f in [*subject.smallest(), subject.roomy()]:
            stack_nd = honest_rows(rng, n, D, dtype)
            stack_nd[:, 3] = np.nan
            grad_d = subject(stack_nd, f)
            case = f"{told(stack_nd, f)}, coordinate 3 all NaN"
            if grad_d[3] != 0:
                yield f"{case}: expected 0 there, found {grad_d[3]}"
            yield from far(np.delete(grad_d, 3), np.delete(truth(D), 3), case)


@_clause("f lost or hostile rows")
def _lost_rows(subject: Subject) -> Iterator[str]:
    """Lost rows count as hostile ones: the rule tolerates f of both kinds together."""
    if not subject.tolerates_missing:
        raise SkippedError(NAN_SPREADS)
    rng = subject.rng()
    for dtype in subject.dtypes:
        for n, f in [*subject.smallest(), subject.roomy()]:
            for num_lost in {f, (f + 1) // 2} if subject.robust else {(n - 1) // 2}:
                num_hostile = f - num_lost if subject.robust else 0
                stack_nd = attacked(rng, n, num_hostile, D, dtype, 1e30)
                honest = np.flatnonzero(np.abs(stack_nd).max(axis=1) < 1e3)
                stack_nd[rng.choice(honest, num_lost, replace=False)] = np.nan
                case = f"{told(stack_nd, f)}, {num_lost} rows of NaN, {num_hostile} of 1e30"
                yield from far(subject(stack_nd, f), truth(D), case)


@_clause("lost coordinates and hostile rows: finite")
def _lost_and_hostile_finite(subject: Subject) -> Iterator[str]:
    """f hostile rows leave the result finite, even where loss makes them the majority."""
    if not (subject.robust and subject.tolerates_missing):
        raise SkippedError(NAN_SPREADS if subject.robust else NOT_ROBUST)
    rng = subject.rng()
    for dtype in subject.dtypes:
        for n, f in subject.smallest():
            # Bits point anywhere, and where they take a rule it may be near in norm alone.
            for name, value in {**HOSTILE, RANDOM_BITS: RANDOM_BITS}.items():
                stack_nd = lose_some(rng, attacked(rng, n, f, D, dtype, value))
                off = ~np.isfinite(grad_d := subject(stack_nd, f).astype(np.float64))
                if off.any():
                    yield (
                        f"{told(stack_nd, f)}, {f} rows of {name}, a tenth of the values NaN: "
                        f"expected finite values, found {grad_d[off][0]} in coordinate "
                        f"{np.flatnonzero(off)[0]} ({off.sum()} such)"
                    )


@_clause("lost coordinates and hostile rows: near")
def _lost_and_hostile_near(subject: Subject) -> Iterator[str]:
    """The rule tolerates both if every coordinate keeps as many values as the condition needs."""
    if not (subject.robust and subject.tolerates_missing):
        raise SkippedError(NAN_SPREADS if subject.robust else NOT_ROBUST)
    rng = subject.rng()
    n, f = subject.roomy()
    for dtype in subject.dtypes:
        for name, value in HOSTILE.items():
            stack_nd = lose_some(rng, attacked(rng, n, f, D, dtype, value))
            case = f"{told(stack_nd, f)}, {f} rows of {name}, a tenth of the values NaN"
            lost_d = is_nan(stack_nd).any(axis=0)
            yield from far(subject(stack_nd, f), truth(D), case, zero_allowed=lost_d)
