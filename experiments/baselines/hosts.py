"""The hosts of ``scripts/lossympi-hosts --plain``."""

from __future__ import annotations

import subprocess

_PORT = 20000
_LOSSES = """
table netdev grpc {{
  chain arriving {{
    type filter hook ingress device "e0" priority 1;
    ip protocol tcp numgen random mod 1000 < {drop} counter drop
  }}
}}
"""


def address(host: int) -> str:
    """Returns where a server on it listens."""
    return f"10.231.1.{100 + host}:{_PORT}"


def enter(host: int) -> list[str]:
    """Returns the words before a command that is to run there."""
    return ["ip", "netns", "exec", f"lm_{host}"]


def lose_tcp(hosts: int, drop: int) -> None:
    """Loses, from now on, ``drop`` of 1000 TCP packets that reach one of the first hosts."""
    for host in range(hosts):
        nft = [*enter(host), "nft", "-f", "-"]
        subprocess.run(nft, input=_LOSSES.format(drop=drop), text=True, check=True)
