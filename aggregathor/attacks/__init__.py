"""Attacks: what Byzantine workers send, as pure and seeded functions of what they know.

>>> import numpy as np
>>> from aggregathor import attacks
>>> honest_hd = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]], np.float32)
>>> view = attacks.View(honest_hd, own_bd=honest_hd[:1], f=1, rng=np.random.default_rng(0))
>>> attacks.inner_product(view, epsilon=0.5)
array([[-1. , -1.5]], dtype=float32)
>>> attacks.apply(attacks.ATTACKS["sign-flip"], view).shape
(4, 2)
"""

from aggregathor.attacks.base import Attack, View, apply, load, registered
from aggregathor.attacks.constants import constant, huge, inf, nan, zero
from aggregathor.attacks.coordinates import bit_flip, gambler
from aggregathor.attacks.copies import mimic
from aggregathor.attacks.local import (
    gaussian,
    label_flip,
    negative_gradient,
    random_disturbance,
    sign_flip,
)
from aggregathor.attacks.moments import inner_product, little, omniscient, reversed
from aggregathor.attacks.search import hidden_coordinate, min_max, min_sum
from aggregathor.errors import Registry

ATTACKS = Registry("attack", registered, load)

__all__ = [
    "ATTACKS",
    "Attack",
    "View",
    "apply",
    "bit_flip",
    "constant",
    "gambler",
    "gaussian",
    "hidden_coordinate",
    "huge",
    "inf",
    "inner_product",
    "label_flip",
    "little",
    "mimic",
    "min_max",
    "min_sum",
    "nan",
    "negative_gradient",
    "omniscient",
    "random_disturbance",
    "reversed",
    "sign_flip",
    "zero",
]
