"""What a checkpoint says about its variables, so that another training does not take them.

Variables are saved in an order. Another model, or another optimizer, may have as many of the same
shapes: Adam would take SGD's learning rate, which is as number 1 in both. So each group of
variables is saved with its names, shapes and dtypes, and with the class of the optimizer that has
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

Described = Mapping[str, Any]  # of JSON


class Group(NamedTuple):
    """Variables that are saved together.

    Attributes:
      variables: of Keras or TensorFlow, in their order.
      owner: the class of the optimizer that they are the state of; "" for a model's.
    """

    variables: Sequence[Any]
    owner: str = ""

    @classmethod
    def of(cls, group: Group | Sequence[Any]) -> Group:
        """Returns a group as it is, and makes one of a model's variables."""
        return group if isinstance(group, Group) else cls(group)

    def describe(self) -> Described:
        """Returns the owner, and name, shape and dtype of each variable."""
        return {"owner": self.owner, "variables": [_describe(v) for v in self.variables]}


def difference(there: Described, here: Described) -> str:
    """Returns how a saved group differs from one of now, such as "is of another ..."; "" if not."""
    if there["owner"] != here["owner"]:
        return f"is of another optimizer: {there['owner']} there and {here['owner']} here"
    what = "of another state of the optimizer" if here["owner"] else "of another model"
    pairs = zip_longest(there["variables"], here["variables"])
    for number, (saved, own) in enumerate(pairs):
        if _compared(saved) != _compared(own):
            counts = len(there["variables"]), len(here["variables"])
            number_of = (
                ""
                if counts[0] == counts[1]
                else f"{counts[0]} variables there and " + (f"{counts[1]} here; ")
            )
            return f"is {what}: {number_of}number {number} is {_words(saved)} there and " + (
                f"{_words(own)} here"
            )
    return ""


def packed(described: Mapping[str, Any]) -> np.ndarray:
    """Returns a description as an array that a checkpoint can hold."""
    return np.frombuffer(json.dumps(described).encode(), np.uint8)


def unpacked(array: np.ndarray) -> dict[str, Any]:
    """Returns the description in an array that ``packed`` has made.

    Raises:
      ValueError: it holds none.
    """
    found = json.loads(array.tobytes())
    if not isinstance(found, dict):
        raise ValueError("its description is none")
    return found


def _describe(variable: Any) -> list[Any]:
    name = getattr(variable, "path", None) or getattr(variable, "name", "")
    dtype = getattr(variable.dtype, "name", None) or str(variable.dtype)
    return [str(name), [int(size) for size in variable.shape], dtype]


def _compared(variable: Sequence[Any] | None) -> Sequence[Any] | None:
    """Returns what must be equal: a number in a name only counts what was made before."""
    if variable is None:
        return None
    name, shape, dtype = variable
    return [re.sub(r"_\d+(?=[_/:]|$)", "", name), list(shape), dtype]


def _words(variable: Sequence[Any] | None) -> str:
    if variable is None:
        return "missing"
    name, shape, dtype = variable
    return f"{name} {dtype}{list(shape)}"
