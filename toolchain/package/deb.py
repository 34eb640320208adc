"""A Debian package: bundle, runtime and libraries below /opt, a systemd unit that may do next to nothing else.

Formats: deb(5), Debian policy 5-7 and 10.7 (conffiles). The service runs as a user that exists only while it
runs; `systemd-analyze security` judges the unit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from toolchain.package import archive
from toolchain.package.payload import ENVIRONMENT, PORT, Payload, command
from toolchain.package.sbom import stated_licences

_UNIT = """\
[Unit]
Description=toolchain model server: {title}
Documentation=file:///usr/share/doc/{package}/
After=network.target

[Service]
Type=notify
DynamicUser=yes
EnvironmentFile=-/etc/default/{package}
{environment}
ExecStart={start}
Restart=always
RestartSec=2
RestartPreventExitStatus=2 3
TimeoutStopSec=30
MemoryMax=2G
LimitNOFILE=4096
TasksMax=256
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
{devices}
PrivateUsers=yes
PrivateIPC=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
_DEFAULTS = """\
# Where {package} listens. More options of the server (python3 -m toolchain.runtime serve --help) go into OPTIONS.
HOST=127.0.0.1
PORT={port}
#OPTIONS=--limit-queue=16
"""
# Also after an upgrade or a removal that failed half-way (abort-…), before which prerm stopped the service.
_POSTINST = """\
#!/bin/sh
set -e
case "$1" in
configure | abort-upgrade | abort-remove | abort-deconfigure)
    if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl enable {package}.service
        systemctl restart {package}.service
    fi
    ;;
esac
"""
_PRERM = """\
#!/bin/sh
set -e
if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    if [ "$1" = remove ]; then
        systemctl disable --now {package}.service
    else
        systemctl stop {package}.service
    fi
fi
"""


_POSTRM = """\
#!/bin/sh
set -e
if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
"""


def package_name(payload: Payload) -> str:
    """The Debian package's name, which is also the unit's."""
    return f"toolchain-{payload.name}"


def write(payload: Payload, out: Path) -> None:
    """Write the .deb. Raises PackageError where libraries are missing."""
    package, when = package_name(payload), payload.wish.epoch
    home = f"opt/toolchain/{payload.name}"
    tree = {f"{home}/{name}": content for name, content in payload.tree().items()}
    tree |= {
        f"lib/systemd/system/{package}.service": unit(payload).encode(),
        f"etc/default/{package}": _DEFAULTS.format(package=package, port=PORT).encode(),
        f"usr/share/doc/{package}/copyright": _copyright(payload, home).encode(),
    }
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": archive.xzipped(_control(payload, tree)),
        "data.tar.xz": archive.xzipped(archive.tar(tree, when, prefix="./")),
    }
    out.write_bytes(archive.ar(members, when))


def unit(payload: Payload) -> str:
    """The systemd unit's text."""
    home = f"/opt/toolchain/{payload.name}"
    words = command(payload.wish, f"{home}/bundle", host="${HOST}", port="${PORT}")
    environment = {
        "HOST": "127.0.0.1",
        "PORT": str(PORT),
        "OPTIONS": "",
        "PYTHONPATH": f"{home}/lib",
        **ENVIRONMENT,
    }
    # EnvironmentFile wins over Environment, so the values here are what holds without the file. $OPTIONS, without
    # braces, is split into words.
    return _UNIT.format(
        title=payload.name,
        package=package_name(payload),
        environment="\n".join(f"Environment={key}={value}" for key, value in environment.items()),
        start=" ".join([*words, "$OPTIONS"]),
        devices="PrivateDevices=yes" if payload.wish.accelerator == "cpu" else "DevicePolicy=auto",
    )


def _control(payload: Payload, tree: dict[str, bytes]) -> bytes:
    package = package_name(payload)
    major, minor = payload.python
    size = sum(map(len, tree.values())) // 1024 + 1
    fields = [
        f"Package: {package}",
        f"Version: {payload.version}",
        f"Architecture: {payload.wish.arch}",
        "Maintainer: toolchain <root@localhost>",
        f"Installed-Size: {size}",
        f"Depends: python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1}), libc6 (>= 2.28), libstdc++6",
        "Section: misc",
        "Priority: optional",
        f"Description: model {payload.name} with its server",
        " Answers pictures over HTTP once its golden answers were found the same on this machine.",
        f" Bundle {payload.manifest.identity}.",
    ]
    sums = [
        f"{hashlib.md5(c, usedforsecurity=False).hexdigest()}  {name}"
        for name, c in sorted(tree.items())
        if not name.startswith("etc/")  # what the administrator may change
    ]
    files = {
        "control": "\n".join([*fields, ""]).encode(),
        "md5sums": "\n".join([*sums, ""]).encode(),
        "conffiles": f"/etc/default/{package}\n".encode(),
        "postinst": _POSTINST.format(package=package).encode(),
        "prerm": _PRERM.format(package=package).encode(),
        "postrm": _POSTRM.encode(),
    }
    return archive.tar(files, payload.wish.epoch, prefix="./", executable={"postinst", "prerm", "postrm"})


def _copyright(payload: Payload, home: str) -> str:
    lines = [f"{one.name} {one.version}: {one.licence}" for one in payload.libraries]
    models = [f"{what}: {licence}" for what, licence in stated_licences(payload.manifest)]
    return "\n".join(["toolchain: Apache-2.0", *lines, *models, f"Full texts: /{home}/licences", ""])
