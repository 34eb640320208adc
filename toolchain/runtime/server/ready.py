"""Whether the server on this machine is ready, for a container's health check: python -m toolchain.runtime.server.ready

Asks http, then https (whose certificate is for another name than 127.0.0.1) on the port named behind it, or 8080. Exit
code 0 or 1. The environment's proxies, which Docker hands into containers, are not asked; no other library is loaded.
"""

from __future__ import annotations

import http.client
import ssl
import sys

_SECONDS = 3.0


def ready(port: int) -> bool:
    """Whether the server on 127.0.0.1 says so, within 3 seconds of each kind."""
    unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    for asked in (
        http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS),
        http.client.HTTPSConnection("127.0.0.1", port, timeout=_SECONDS, context=unchecked),
    ):
        try:
            asked.request("GET", "/v2/health/ready")
            if asked.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            continue
        finally:
            asked.close()
    return False


if __name__ == "__main__":
    sys.exit(0 if ready(int(sys.argv[1]) if len(sys.argv) > 1 else 8080) else 1)
