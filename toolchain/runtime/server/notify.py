"""Telling a supervisor that the server is ready, or stops: systemd's sd_notify(3), by a datagram."""

from __future__ import annotations

import os
import socket

from toolchain.runtime.errors import HostError


def tell(state: str) -> None:
    """Send a state ("READY=1", "STOPPING=1") to the socket in NOTIFY_SOCKET; without one, do nothing.

    Raises HostError when the socket takes nothing: the supervisor would wait for ever.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # Linux' abstract names
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as e:
        raise HostError(f"NOTIFY_SOCKET={address!r}: cannot be told {state} ({e.strerror})") from e
