"""Which of a host's IPv4 addresses the ranks use to reach each other."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from pathlib import Path

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def own_addresses() -> dict[str, str]:
    """Returns this host's IPv4 addresses by device, in the system's order; one a device."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, device in socket.if_nameindex():
            request = struct.pack("256s", device.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            found[device] = socket.inet_ntoa(answer[20:24])
    return found


def network_of_this_process() -> str:
    """Names what can reach itself by 127.0.0.1: a running kernel's network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"


def server_address(chosen: str | None, all_local: bool) -> str:
    """Returns the address that the server announces.

    Args:
      chosen: an address of this host, or a network like 10.0.0.0/8 in which it has one; None to
        take the device of the default route, or the first that is not the loopback's.
      all_local: whether every rank lives in the server's network namespace.
    Raises:
      ValueError: the host has no such address.
    """
    addresses = own_addresses()
    if chosen is not None:
        return _matching(chosen, addresses)
    if all_local:
        return "127.0.0.1"
    outward = {d: a for d, a in addresses.items() if not ipaddress.ip_address(a).is_loopback}
    if not outward:
        raise ValueError(
            "the server's host has no IPv4 address that other hosts could reach; it has "
            f"{addresses}. Give it one, or start all ranks on this host."
        )
    return outward.get(_default_device(), next(iter(outward.values())))


def address_towards(server: str) -> str:
    """Returns the address from which this host reaches the server.

    Raises:
      OSError: there is no route, or it is an address that a network broadcasts to.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((server, 9))  # sends nothing
        return probe.getsockname()[0]


def check_door(address: str, port: int, server: str) -> None:
    """Raises unless a rank can have an address and port as its own.

    A worker says so itself, and the server sends a model there in each round: a group of hosts, or
    a service of the server's own host, would get it.

    Args:
      address: numeric IPv4.
      port: of UDP; none below 1024, which the system gives to nobody who asks for any.
      server: the address that the server announces.
    Raises:
      ValueError: it cannot.
    """
    try:
        ip = ipaddress.IPv4Address(address)
    except ValueError:
        raise ValueError(f"an address is numeric IPv4, got {address!r}") from None
    if ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        raise ValueError(f"{address} is not the address of one host")
    if ip.is_loopback != ipaddress.IPv4Address(server).is_loopback:
        raise ValueError(f"{address} and the server's {server} cannot reach each other")
    if not 1024 <= port < 2**16:
        raise ValueError(f"a port is 1024..65535, got {port}")


def device_of(address: str) -> str:
    """Returns the device that has this address, "" if none has."""
    return next((d for d, a in own_addresses().items() if a == address), "")


def device_fact(device: str, fact: str, root: Path = Path("/")) -> int | None:
    """Returns "speed" (Mbit/s), "mtu" (bytes) or the like as the kernel reports it, or None."""
    try:
        value = int((root / f"sys/class/net/{device}/{fact}").read_text())
    except (OSError, ValueError):  # a virtual device may have no speed
        return None
    return value if value > 0 else None


def _matching(chosen: str, addresses: dict[str, str]) -> str:
    try:
        network = ipaddress.ip_network(chosen, strict=False)
    except ValueError:
        raise ValueError(
            f"an address is numeric IPv4, or a network like 10.0.0.0/8; got {chosen!r}."
        ) from None
    for address in addresses.values():
        if ipaddress.ip_address(address) in network:
            return address
    raise ValueError(
        f"this host has no address in {network}; it has {addresses}. Name one of them."
    )


def _default_device() -> str:
    """Returns the device of the default route, "" if there is none."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        device, destination = line.split()[:2]
        if destination == "00000000":
            return device
    return ""
