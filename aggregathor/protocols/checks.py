"""What can be said of a training before TensorFlow is loaded: names, parameters, n and f."""

from __future__ import annotations

from collections.abc import Callable

from aggregathor.attacks import ATTACKS
from aggregathor.errors import UserError
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.settings import Simulation, Training, defaults


def check_training(values: Training, n: int, check_rule: Callable[[int, int], None]) -> None:
    """Raises ``UserError`` for what cannot work with n workers.

    Args:
      values: what the training was told.
      n: how many workers there are.
      check_rule: ``check_rule(n, f)`` raises where the rule cannot be used.
    """
    b = values.byzantine
    if n < 1:
        raise UserError(f"at least one worker is needed, got {n}")
    if not 0 <= b <= n:
        raise UserError(f"{b} Byzantine workers of {n}: there cannot be more than workers")
    protocol = PROTOCOLS[values.protocol]
    protocol.check(n=n, f=values.f, **values.protocol_args)
    if protocol.has_rule:
        check_rule(protocol.rows(n=n, f=values.f, **values.protocol_args), values.f)
    else:
        _check_no_rule(values)
    if values.attack:
        attack = ATTACKS[values.attack]
        attack.check(**values.attack_args)
        if protocol.takes and attack.form not in ("local", "labels"):
            raise UserError(
                f"the attack {values.attack} is {attack.form}: it needs the gradients of all "
                f"workers at the same time, and with --protocol={protocol.name} there is no such "
                "time. Take a local one: see `aggregathor attacks`."
            )
        if b == 0 and attack.form != "coordinates":
            raise UserError(f"the attack {values.attack} needs Byzantine workers, and there are 0")
        if b == n:
            raise UserError(f"all {n} workers are Byzantine: no honest gradient is left")
        if values.byzantine_moves and attack.form == "coordinates":
            raise UserError(
                f"the attack {values.attack} hits any worker's gradient: leave byzantine_moves out"
            )
        if values.byzantine_moves and attack.update is not None:
            raise UserError(
                f"the attack {values.attack} remembers, which needs the same workers in each step: "
                "leave byzantine_moves out"
            )
    elif b > 0:
        raise UserError(f"{b} workers are Byzantine and no attack is named for them")
    elif values.attack_args:
        raise UserError("attack parameters are given and no attack is named")
    if values.byzantine_moves and b == 0:
        raise UserError("byzantine_moves draws Byzantine workers, and there are 0")


def doubts(values: Training, *, robust: bool) -> list[str]:
    """Returns what can run, and will hardly be what was meant.

    Args:
      values: of a training that ``check_training`` accepts.
      robust: whether its rule tolerates Byzantine workers at all.
    """
    found: list[str] = []
    protocol = PROTOCOLS[values.protocol]
    robust = robust if protocol.has_rule else protocol.robust
    what = values.gar if protocol.has_rule else protocol.name
    flag = "rule with --gar" if protocol.has_rule else "--protocol"
    if values.f > 0 and not robust:
        found.append(
            f"f={values.f} is declared, and {what} tolerates no Byzantine worker: choose "
            f"another {flag}, see `aggregathor advise`"
        )
    if values.byzantine > values.f:
        found.append(f"{values.byzantine} workers attack, and {what} expects at most f={values.f}")
    return found


def check_transport(values: Training, transport: str) -> None:
    """Raises ``UserError`` where a transport cannot carry what a protocol needs."""
    takes = PROTOCOLS[values.protocol].takes
    if takes and transport == "udp" and values.fill not in ("zero", "previous"):
        raise UserError(
            f"--protocol={values.protocol} takes gradients one by one, and what UDP loses of one "
            f"cannot be {values.fill}: no rule over all workers sees it, and the model would keep "
            "it. Take --fill=zero, or previous for the worker's last value."
        )


def check_simulated_loss(values: Simulation) -> None:
    """Raises ``UserError`` for a loss that no simulation has."""
    if PROTOCOLS[values.protocol].takes and values.loss:
        raise UserError(
            f"a simulation of --protocol={values.protocol} takes whole gradients, so that none is "
            f"lost; got --loss={values.loss}. Leave it out, or start ranks with --transport=udp."
        )


def _check_no_rule(values: Training) -> None:
    """Raises ``UserError`` for what is told of a rule where the protocol has none."""
    usual = defaults(Training)
    takes = PROTOCOLS[values.protocol].takes
    for name, why in (
        ("gar", "decides what is applied, not a rule"),
        ("gar_args", "decides what is applied, not a rule"),
        ("fill", "must know what is lost"),
    ):
        if getattr(values, name) != usual[name] and not (takes and name == "fill"):
            raise UserError(
                f"the protocol {values.protocol} {why}: leave {name} out, got "
                f"{getattr(values, name)!r}"
            )
