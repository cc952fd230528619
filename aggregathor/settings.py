"""What a training can be told. Each setting is declared once, with its default and its help.

``Training`` has what everything that trains has in common, ``Simulation`` what an experiment has
besides. A job adds its own (``cluster/config.py``), and so do experiments (``experiments/
settings.py``). The arguments of ``agt.init``, variables of the environment, the flags of both
command lines and the documentation of the classes are made from these fields, so a new setting is a
field here, and what uses it.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from aggregathor.errors import UnknownNameError, near
from lossympi import FILLS

C = TypeVar("C", bound=type)


def setting(
    default: Any,
    text: str,
    *,
    kind: type | None = None,
    choices: Collection[str] = (),
    later: bool = False,
) -> Any:
    """Declares a field of a class of settings.

    Args:
      default: of the field; ``dataclasses.MISSING`` where it has none.
      text: what the setting is, in a few words or sentences, for ``--help`` and documentation.
      kind: str, int, float, bool, or dict for parameters as name=value; by default the default's
        type.
      choices: the values that it may have, where they are known here.
      later: whether experiments were named before it was there: while it is the default, their
        folders keep their names.
    """
    told = {
        "help": text,
        "kind": kind or type(default),
        "choices": tuple(choices),
        "later": later,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=told)
    return dataclasses.field(default=default, metadata=told)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all that trains has in common."""

    gar: str = setting(
        "average",
        'the rule, or a composition such as "bucketing(s=2)+krum": see `aggregathor gars`. The '
        "default tolerates no Byzantine worker.",
    )
    gar_args: Mapping[str, Any] = setting(
        {}, 'the rule\'s parameters beside f, as name=value: --gar_args="m=3" for multi-krum.'
    )
    f: int = setting(
        0, "how many Byzantine workers the rule must tolerate; by default --byzantine."
    )
    protocol: str = setting(
        "sync", "how workers and server take turns: see `aggregathor protocols`.", later=True
    )
    protocol_args: Mapping[str, Any] = setting(
        {}, "the protocol's parameters, as name=value.", later=True
    )
    fill: str = setting(
        "nan",
        f"what replaces lost coordinates: {', '.join(FILLS)}. Where gradients are taken one by "
        "one it is zero or previous.",
        choices=FILLS,
    )
    byzantine: int = setting(0, "how many workers attack, for experiments: the last ones.")
    byzantine_moves: bool = setting(
        False, "whether those that attack are drawn anew in each step, from the seed.", later=True
    )
    attack: str = setting("", "what the Byzantine workers do: see `aggregathor attacks`.")
    attack_args: Mapping[str, Any] = setting(
        {}, 'the attack\'s parameters, as name=value: --attack_args="z=1.5" for little.'
    )
    seed: int = setting(0, "seed of attacks and fills.")


@dataclass(frozen=True, kw_only=True)
class Simulation(Training):
    """What a simulated training and an experiment on real ranks have besides."""

    loss: float = setting(
        0.0,
        "share of the datagrams to the server that the network loses, 0..1; under mpirun, with "
        "--transport=udp only.",
    )
    delays: str = setting(
        "exponential",
        "how long workers of a simulation without rounds take for a gradient: equal (1 s), "
        "exponential (1 s on average), truncated-normal (1 s + |N(0, 1)|); or staleness: whoever "
        "comes has any of the last versions.",
        choices=("equal", "exponential", "truncated-normal", "staleness"),
        later=True,
    )
    delay_args: Mapping[str, Any] = setting(
        {},
        'what delays there are besides: --delay_args="factors={3:10}" (row 3 takes ten times as '
        'long), "silent={2:50}" (row 2 sends nothing from second 50 on), "most=10" (for '
        "--delays=staleness, in updates).",
        later=True,
    )
    l1: float = setting(0.0, "penalty on the sum of absolute weights, in every worker's loss.")
    l2: float = setting(0.0, "penalty on the sum of squared weights, in every worker's loss.")


def fields(of: Any) -> dict[str, dataclasses.Field]:
    """Returns the fields of a class of settings, or of an instance, by name."""
    return {field.name: field for field in dataclasses.fields(of)}


def defaults(of: type) -> dict[str, Any]:
    """Returns name and default of each setting of a class."""
    made = {}
    for name, field in fields(of).items():
        is_made = field.default is dataclasses.MISSING
        made[name] = {} if is_made else field.default
    return made


def shared(values: Any, kind: type = Training) -> dict[str, Any]:
    """Returns by name what an instance has of the settings of one of its base classes."""
    return {name: getattr(values, name) for name in fields(kind)}


def in_words(values: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns such as "gar='krum', f=2": some settings as a call of a function has them."""
    return ", ".join(f"{name}={values[name]!r}" for name in names)


def check_choices(values: Any) -> None:
    """Raises ``UnknownNameError`` for a setting that is none of its choices."""
    for name, field in fields(values).items():
        choices, value = field.metadata.get("choices"), getattr(values, name)
        if choices and value not in choices:
            hint = near(value, [choice for choice in choices if choice])
            raise UnknownNameError(f"no {name} is called {value!r}: {hint}")


def documented(cls: C) -> C:
    """Adds the settings of a class, with their help, to its documentation."""
    lines = [inspect.cleandoc(cls.__doc__ or ""), "", "Attributes:"]
    for name, field in fields(cls).items():
        text = f"{name}: {field.metadata['help']}"
        lines.append(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="    "))
    cls.__doc__ = "\n".join(lines)
    return cls
