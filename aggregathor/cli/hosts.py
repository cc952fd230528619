"""The hosts of a job: which of them cannot be reached, before mpirun finds out in its own words."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SSH_PORT = 22
_WAIT_S = 1.0


def names(host: str | None, hostfile: str | None) -> list[str]:
    """Returns the names in ``--host`` or a host file, each once."""
    if host:
        found: Iterable[str] = host.split(",")
    elif hostfile:
        lines = Path(hostfile).read_text(errors="replace").splitlines()
        found = (line.split("#")[0].strip().split(" ")[0] for line in lines)
    else:
        found = ()
    return list(dict.fromkeys(name for each in found if (name := each.partition(":")[0].strip())))


def silent(hosts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the hosts that mpirun will not reach by ssh, each with why; takes about a second.

    Slurm starts processes itself, and an alias of ssh's configuration is unknown here: nothing is
    said of either.
    """
    if not hosts or "SLURM_JOB_ID" in os.environ:
        return []
    with ThreadPoolExecutor(max_workers=min(32, len(hosts))) as pool:
        found = zip(hosts, pool.map(_why_silent, hosts), strict=True)
        return [(host, why) for host, why in found if why]


def _why_silent(host: str) -> str:
    if host in ("localhost", socket.gethostname()):
        return ""
    try:
        addresses = socket.getaddrinfo(host, _SSH_PORT, type=socket.SOCK_STREAM)
    except OSError as error:
        return "" if _is_alias(host) else f"has no address here ({error.strerror})"
    if any(_is_ours(address[4][0]) for address in addresses) or _is_alias(host):
        return ""
    if shutil.which("ssh") is None:
        return "is reached by ssh, which is not installed here"
    try:
        with socket.create_connection((host, _SSH_PORT), timeout=_WAIT_S):
            return ""
    except OSError as error:
        return f"does not answer at port {_SSH_PORT} ({error.strerror or error})"


def _is_ours(address: str | int) -> bool:
    """Whether an address is one of this machine's: mpirun needs no ssh for it."""
    family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((str(address), 0))
        except OSError:
            return False
    return True


def _is_alias(host: str) -> bool:
    """Whether ssh's configuration has an entry for it, which may have another address or port."""
    for path in (Path.home() / ".ssh" / "config", Path("/etc/ssh/ssh_config")):
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            word, *patterns = line.split() or [""]
            if word.lower() == "host" and host in patterns:
                return True
    return False
