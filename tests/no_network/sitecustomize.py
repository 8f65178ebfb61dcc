"""Refuses every socket that would leave the machine, in the test process and (by PYTHONPATH) in those that it starts.

Attempts are written to the file that HF_SFT_TEST_ATTEMPTS names, so that the suite can assert that there were none.
"""

import ipaddress
import os
import socket

ELSEWHERE = "elsewhere.invalid"
"""What the guard's own test asks for."""
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host in ("localhost", "", socket.gethostname())


def _refuse(host: object) -> None:
    if path := os.environ.get("HF_SFT_TEST_ATTEMPTS"):
        with open(path, "a") as file:
            file.write(f"{host}\n")
    raise OSError(f"tests may not reach {host}")


def connect(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(str(address[0])):  # type: ignore[index]
        _refuse(address)
    _connect(self, address)  # type: ignore[arg-type]


def getaddrinfo(host: object, *args: object, **kwargs: object) -> object:
    name = host.decode() if isinstance(host, bytes) else host
    if name is not None and not _is_here(str(name)):
        _refuse(name)
    return _getaddrinfo(host, *args, **kwargs)  # type: ignore[arg-type]


def install() -> None:
    socket.socket.connect = connect  # type: ignore[method-assign]
    socket.getaddrinfo = getaddrinfo  # type: ignore[assignment]


if os.environ.get("HF_SFT_TEST_ATTEMPTS"):
    install()
