"""An address of this machine at which a command answers: taken before anything slow is done for it."""

from __future__ import annotations

import socket

from factory.errors import ServingError


def take_port(host: str, port: int) -> socket.socket:
    """A socket bound to ``host`` and ``port`` (0: any that is free), not listening yet.

    Raises:
        ServingError: another program answers there, or the address is not this machine's.
    """
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that just ended holds it no longer
        taken.bind((host, port))
        taken.set_inheritable(True)
    except OSError as error:
        taken.close()
        raise cannot_answer(host, port, error) from None
    return taken


def cannot_answer(host: str, port: int, error: OSError) -> ServingError:
    """What to say where an address cannot be had."""
    reason = (error.strerror or str(error)).lower()
    return ServingError(f"{host}:{port} cannot be had: {reason}. End what answers there, or name another --port")
