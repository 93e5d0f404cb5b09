"""Which client an address belongs to, and which servers are trusted to speak for others."""

import ipaddress
from collections.abc import Sequence
from typing import Any


def client_of(peer: Sequence[Any] | None) -> str:
    """The client behind (address, port): its address; for IPv6 its network of 64 bits, since one client may use
    every address in it."""
    address = str(peer[0]) if peer else ""
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    known = getattr(known, "ipv4_mapped", None) or known
    if known.version == 6:
        return str(ipaddress.ip_network((int(known), 64), strict=False).network_address)
    return str(known)


def is_trusted(address: str, trusted: str) -> bool:
    """Whether an address is in a comma-separated list of addresses and networks, or the list is "*"."""
    named = [one.strip() for one in trusted.split(",")]
    return "*" in named or any(_contains(one, address) for one in named if one)


def _contains(network: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return network == address
