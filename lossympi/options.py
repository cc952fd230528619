"""What all ranks must agree on before they connect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_TIMES = ("timeout_s", "quiet_s", "silence_s", "give_up_s")
# What the other transports heed: they neither cut vectors up nor lose, hide or pace anything.
_OF_LOSSLESS = ("timeout_s", "f", "quorum", "patience", "give_up_s")
_HEADERS = 28 + 32 + 16  # IPv4 and UDP, ours, the tag


@dataclass(frozen=True)
class Options:
    """How a link behaves; every rank passes the same.

    Without UDP there are timeout_s, f, quorum, patience and give_up_s only, and t_B is timeout_s.

    Attributes:
      timeout_s: t_B is never longer than this, nor a round, nor a broadcast.
      floor_s: t_B is never learnt to be shorter than this: how long all workers may pause at once,
        as training does between epochs.
      f: how many workers may be Byzantine. All but f of the live ones are waited for until t_B, the
        others at their own expense, so that f workers can at most double the time of the rounds,
        beside patience times timeout_s each: see ``lossympi.timeout``. 0: all are waited for until
        t_B. None: it is unknown, and fewer than half of the live ones.
      max_loss: share of a gradient that may stay lost when its round closes early, 0..1. 1 sends
        everything once, as the paper does; below, what is missing beyond it is sent again.
      quorum: close a round early when this many live workers have sent theirs; None for all. The f
        Byzantine ones may be among the first: take no fewer than the rule needs for f.
      patience: after this many silent rounds the server no longer waits for a worker, until it
        hears it again; and how many times t_B a worker may keep the others waiting.
      auth: "aead" authenticates every datagram, "none" is for networks that nobody else is on.
      wire: "float32", "float16" or "bfloat16": the type that travels.
      mtu: bytes of the longest IP packet that every path carries.
      rate_bps: what the server can take in and send out, bit/s of UDP payload; None for nine
        tenths of its network card's speed.
      grace_s: after all have sent, how long a datagram that was overtaken is waited for, where some
        have come late.
      quiet_s: a worker that has begun and then sends nothing for so long is taken to have ended.
      silence_s: a broadcast leaves a worker behind that says nothing for so long.
      give_up_s: a worker gives up on a server that it has not heard for so long.
    Raises:
      ValueError: a value is out of range.
    """

    timeout_s: float = 30.0
    floor_s: float = 0.0
    f: int | None = None
    max_loss: float = 1.0
    quorum: int | None = None
    patience: int = 3
    auth: str = "aead"
    wire: str = "float32"
    mtu: int = 1500
    rate_bps: float | None = None
    grace_s: float = 0.0003
    quiet_s: float = 0.1
    silence_s: float = 0.5
    give_up_s: float = 600.0

    def __post_init__(self) -> None:
        """Checks every type and range."""
        for kind, words, names in (
            (Real, "a number", (*_TIMES, "floor_s", "grace_s", "max_loss", "rate_bps")),
            (Integral, "a whole number", ("f", "quorum", "patience", "mtu")),
        ):
            for name in names:
                value = getattr(self, name)
                may_be_none = name in ("rate_bps", "f", "quorum")
                if not (isinstance(value, kind) or (value is None and may_be_none)):
                    raise ValueError(f"{name} is {words}, got {value!r}.")
        for name in _TIMES:
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a time above 0 s, got {getattr(self, name)}.")
        for name in ("floor_s", "grace_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a time of 0 s or more, got {getattr(self, name)}.")
        if not 0 <= self.max_loss <= 1:
            raise ValueError(f"max_loss is a share in 0..1, got {self.max_loss}. Pass 0.01 for 1%.")
        if self.f is not None and self.f < 0:
            raise ValueError(f"f is at least 0 workers, got {self.f}.")
        if self.quorum is not None and self.quorum < 1:
            raise ValueError(f"quorum is at least 1 worker, got {self.quorum}.")
        if self.patience < 1:
            raise ValueError(f"patience is at least 1 round, got {self.patience}.")
        if self.auth not in ("aead", "none"):
            raise ValueError(f"auth is 'aead' or 'none', got {self.auth!r}.")
        if self.wire not in _FLOAT_BYTES:
            raise ValueError(f"wire is one of {', '.join(_FLOAT_BYTES)}; got {self.wire!r}.")
        if not 576 <= self.mtu <= 65535:
            raise ValueError(
                f"mtu is 576..65535 bytes (IPv4 carries 576 anywhere), got {self.mtu}."
            )
        if self.rate_bps is not None and not 1e3 <= self.rate_bps < 4e12:
            raise ValueError(f"rate_bps is 1e3..4e12 bit/s, got {self.rate_bps}.")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Returns the options with these values, by name.

        Raises:
          ValueError: there is no such option, or a value is out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                meant = get_close_matches(name, names, 1)
                hint = f"Did you mean {meant[0]}?" if meant else f"There are {', '.join(names)}."
                raise ValueError(f"no option is called {name}. {hint}")
        return cls(**values)

    @classmethod
    def of_lossless(cls, values: Mapping[str, Any]) -> Options:
        """Returns the options of the transports that lose nothing with these values, by name.

        Raises:
          ValueError: they have no such option, or a value is out of range.
        """
        options = cls.of(values)
        strange = [name for name in values if name not in _OF_LOSSLESS]
        if strange:
            raise ValueError(
                f"without UDP nothing is lost, and there is no {' nor '.join(strange)}: the "
                f"options of transport='mpi' and 'shm' are {', '.join(_OF_LOSSLESS)}. Leave it "
                "out, or pass transport='udp'."
            )
        return options

    @property
    def floats_per_datagram(self) -> int:
        """How many floats a datagram carries: 352 float32 at an MTU of 1500."""
        return (self.mtu - _HEADERS) // 64 * 64 // _FLOAT_BYTES[self.wire]
