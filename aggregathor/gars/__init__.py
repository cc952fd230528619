"""Gradient aggregation rules: [n, d] gradients of n workers to the [d] gradient that is applied.

``GARS["multi-krum"](stack_nd, f=2, m=5)`` and ``multi_krum(stack_nd, f=2, m=5)`` are the same.
Every rule is a pure function, takes NaN for missing and infinities for values, checks n against f
before it computes, and works eagerly and inside ``tf.function``. ``@gar(...)`` adds one's own.

``compose("bucketing(s=2)+multi-krum(m=5)")`` is a rule after pre-aggregations. Rules and
compositions alike have ``init(n, d)`` and ``apply(stack_nd, state, context, f=...)``, which gives
the aggregate, how much of each row it uses, and the state for the next round.
"""

from aggregathor.gars.base import Aggregated, Condition, ConditionError, Gar, gar, registry
from aggregathor.gars.context import Context, State

# isort: split
# In the order in which tables list the rules.
from aggregathor.gars.average import average, average_nan

# isort: split
from aggregathor.gars.coordinate_wise import meamed, median, phocas, trimmed_mean

# isort: split
from aggregathor.gars.krum import krum, multi_krum

# isort: split
from aggregathor.gars.bulyan import bulyan

# isort: split
from aggregathor.gars.brute import brute
from aggregathor.gars.distances import sq_distances
from aggregathor.gars.geometric_median import geometric_median

# isort: split
from aggregathor.gars.zeno import zeno

# isort: split
from aggregathor.gars.composition import Rule, compose
from aggregathor.gars.pre_aggregation import (
    PRE_AGGREGATIONS,
    Mixed,
    PreAggregation,
    bucketing,
    nnm,
    pre_aggregation,
)

GARS = registry()

__all__ = [
    "GARS",
    "PRE_AGGREGATIONS",
    "Aggregated",
    "Condition",
    "ConditionError",
    "Context",
    "Gar",
    "Mixed",
    "PreAggregation",
    "Rule",
    "State",
    "average",
    "average_nan",
    "brute",
    "bucketing",
    "bulyan",
    "compose",
    "gar",
    "geometric_median",
    "krum",
    "meamed",
    "median",
    "multi_krum",
    "nnm",
    "phocas",
    "pre_aggregation",
    "sq_distances",
    "trimmed_mean",
    "zeno",
]
