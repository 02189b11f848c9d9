"""The only way out: media from addresses of hosts that the operator has named.

An address is read by one strict rule; what it says is what is dialled. The host's name must stand
in the list as it is, letter by letter. The name is resolved once, every address that comes back
must be a public one, and the connection goes to that address, not to the name. A redirect is
checked as a new address. Neither cookies nor credentials are sent, no proxy is asked, and a limit
holds for the bytes, one for the seconds of the whole.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import string
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

MAX_REDIRECTS = 3
MAX_HEADER_BYTES = 32 << 10
MAX_URL = 8192
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
URL = re.compile(rf"(https?)://({HOST})(?::([0-9]{{1,5}}))?([/?][^#\\\x00-\x1f\x7f]*)?", re.I)
TRANSLATED = tuple(
    map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))
)
"""Addresses of version 6 that lead to one of version 4."""
Resolve = Callable[[str, int], Awaitable[list[str]]]
Connect = Callable[..., Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class DoorError(Exception):
    """A picture that is not fetched; the text is for the client. fault: "url" where the address is
    refused, "download" where fetching failed, "bytes" where it is too much."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault, self.text = fault, text


@dataclass(frozen=True)
class Address:
    """One http(s) address, split once; target: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        return self.host if self.port == PORTS[self.scheme] else f"{self.host}:{self.port}"


async def resolve_name(host: str, port: int) -> list[str]:
    """All addresses of a host."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Door:
    """Fetches from the hosts of a list. resolve, connect: other ways to do these, for tests."""

    def __init__(
        self,
        allowed_domains: Iterable[str],
        seconds: float,
        *,
        resolve: Resolve = resolve_name,
        connect: Connect = asyncio.open_connection,
    ) -> None:
        self.allowed = frozenset(name.lower() for name in allowed_domains)
        self.seconds = seconds
        self.resolve, self.connect = resolve, connect

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """What an address leads to. Raises DoorError."""
        address = self.read(url)
        try:
            async with asyncio.timeout(self.seconds):
                for _ in range(MAX_REDIRECTS + 1):
                    content, location = await self.get(address, max_bytes)
                    if location is None:
                        return content
                    address = self.follow(address, location)
        except TimeoutError:
            raise DoorError("download", "its server took too long") from None
        except (OSError, ssl.SSLError):
            raise DoorError("download", "its server cannot be reached") from None
        raise DoorError("download", f"it is redirected more than {MAX_REDIRECTS} times")

    def read(self, url: str) -> Address:
        """Raises DoorError for an address of another form, or of a host that is not in the list."""
        found = URL.fullmatch(url.partition("#")[0]) if len(url) <= MAX_URL else None
        if found is None:
            raise DoorError("url", "expected http(s)://host/path, without a user name")
        scheme, host = found[1].lower(), found[2].lower()
        port = int(found[3]) if found[3] else PORTS[scheme]
        target = urllib.parse.quote(found[4] or "/", safe=string.punctuation)
        target = target if target.startswith("/") else f"/{target}"
        address = Address(scheme, host, port, target)
        named = {f"{host}:{port}", host} if port == PORTS[scheme] else {f"{host}:{port}"}
        if not named & self.allowed:
            raise DoorError("url", "this server fetches only from hosts that it was told to allow")
        return address

    def follow(self, address: Address, location: str) -> Address:
        """Where a redirect leads. Raises DoorError for a place that is not allowed."""
        if location.startswith("/") and not location.startswith("//"):
            location = f"{address.scheme}://{address.authority}{location}"
        following = self.read(location)
        is_upgrade = (address.scheme, following.scheme) == ("http", "https")
        is_usual = all(each.port == PORTS[each.scheme] for each in (address, following))
        is_same = (address.scheme, address.port) == (following.scheme, following.port)
        if not is_same and not (is_upgrade and is_usual):
            raise DoorError("url", "it is redirected to another port or protocol")
        return following

    async def get(self, address: Address, max_bytes: int) -> tuple[bytes, str | None]:
        """One request: the content, or where it is redirected to."""
        number = await self.checked_address(address)
        secure: dict[str, Any] = {}
        if address.scheme == "https":
            secure = {"ssl": ssl.create_default_context(), "server_hostname": address.host}
        reader, writer = await self.connect(number, address.port, **secure)
        try:
            return await exchange(reader, writer, address, max_bytes)
        finally:
            writer.transport.abort()

    async def checked_address(self, address: Address) -> str:
        """The address to dial. Raises DoorError unless all of the host's are public."""
        try:
            found = await self.resolve(address.host, address.port)
        except (OSError, UnicodeError):
            raise DoorError("download", "its host has no address") from None
        if not found or not all(map(is_public, found)):
            raise DoorError("url", "its host is not on the public network")
        return found[0]


def is_public(number: str) -> bool:
    """Whether an address in digits is reachable for everybody, and leads nowhere else."""
    try:
        address = ipaddress.ip_address(number)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped is not None or any(address in network for network in TRANSLATED)
    ):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address, max_bytes: int
) -> tuple[bytes, str | None]:
    import h11

    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
    headers = {"Host": address.authority, "User-Agent": "qwen25vl", "Accept": "*/*"}
    headers |= {"Accept-Encoding": "identity", "Connection": "close"}
    request = h11.Request(method="GET", target=address.target, headers=list(headers.items()))
    pieces: list[bytes] = []
    try:
        writer.write((client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b""))
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Response):
                if (location := read_head(event, max_bytes)) is not None:
                    return b"", location
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
                if sum(map(len, pieces)) > max_bytes:
                    raise DoorError("bytes", "it is too large")
            elif isinstance(event, h11.EndOfMessage):
                return b"".join(pieces), None
            elif isinstance(event, h11.ConnectionClosed):
                raise DoorError("download", "its server broke off")
    except h11.ProtocolError:
        raise DoorError("download", "its server broke off, or did not answer in HTTP") from None


def read_head(response: Any, max_bytes: int) -> str | None:
    """Where a response redirects to, None for content. Raises DoorError for anything else."""
    headers = {bytes(name).lower(): bytes(value) for name, value in response.headers}
    if response.status_code in REDIRECTS and b"location" in headers:
        return headers[b"location"].decode("latin-1").strip()
    if response.status_code != 200:
        raise DoorError("download", f"its server answered with status {response.status_code}")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise DoorError("download", "its server sent it in an encoding that was not asked for")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise DoorError("bytes", "it is too large")
    return None
