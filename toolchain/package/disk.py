"""A bootable disk image: UEFI firmware starts one program that holds kernel, drivers and the whole system.

The kernel's initial file system carries a squashfs with the base, the runtime and the bundle, mounted read-only, so
no driver for a disk is needed and nothing is ever written to one. Its first process, a script for a static busybox,
starts the server as a user without rights and starts it again when it dies; a server that refuses its bundle or its
options (exit codes 2 and 3) is not started again. Beside it what the server is about to load is unpacked, so that it waits
for less, and every network card is asked to get an address by DHCP.
Kernel, EFI stub and busybox come from Debian, as a pinned tar ('make boot').
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from toolchain.errors import PackageError
from toolchain.package import archive, bytecode, esp, pinned, sbom, squash, tools, uki
from toolchain.package.oci import USER, pinned_base, system_of
from toolchain.package.payload import ENVIRONMENT, Payload, command

# {architecture: (systemd's name of it, the file that firmware looks for, the serial console)}
_FIRMWARE: Mapping[str, tuple[str, str, str]] = {
    "amd64": ("x64", "BOOTX64.EFI", "ttyS0"),
    "arm64": ("aa64", "BOOTAA64.EFI", "ttyAMA0"),
}
# What is loaded, where the kernel has it as a module, each after what it needs: for the system, then for networks.
ROOT_DRIVERS = ("loop", "squashfs")
DRIVERS = (
    "af_packet", "virtio_pci", "virtio_mmio", "virtio_net", "e1000", "e1000e", "igb", "igc", "ixgbe",
    "r8169", "realtek", "tg3", "ena", "gve", "hv_netvsc", "vmxnet3", "stmmac", "dwmac_generic", "bcmgenet", "fec",
)  # fmt: skip
_CARRIED = ("linux-image-", "busybox-static", "systemd-boot-efi")
_KERNEL = re.compile(r"boot/vmlinuz-([^/]+)")
_DEPENDS = re.compile(rb"\0depends=([a-z0-9_,-]*)\0", re.IGNORECASE)
_INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/0*; do [ -e $module ] && $b insmod $module; done  # none where the kernel has them built in
$b mount -t squashfs -o ro,nosuid,nodev,loop /root.squashfs /root
$b mount -t proc -o nosuid,nodev,noexec proc /root/proc
$b mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /root/sys
$b mount --bind /dev /root/dev
$b ip link set lo up
networks() {{
    for module in /modules/1*; do $b insmod $module 2> /dev/null; done  # of cards that are not here
    for card in /sys/class/net/*; do
        card=${{card##*/}}
        [ $card = lo ] && continue
        $b ip link set $card up
        $b udhcpc -b -S -t 5 -T 1 -A 10 -i $card -s /lease &
    done
}}
ahead() {{
    cd /root/opt/toolchain/lib && $b cat {libraries} > /dev/null 2>&1
}}
{{ ahead; networks; }} &  # beside the server, which takes longer to start, and finds its libraries unpacked
while :; do
    $b env -i PATH=/usr/bin {environment} $b chroot /root {python} -I -S -B -u -c '{drop}' {arguments} > /dev/console 2>&1
    code=$?
    echo "toolchain: the server ended with $code" > /dev/console
    [ $code = 2 ] || [ $code = 3 ] && break
    $b sleep 2
done
while :; do $b sleep 3600; done
"""
# What the server loads first, in its order; most of the bytes of a start.
_LIBRARIES = (
    "numpy.libs/* numpy/_core/*.so onnxruntime/capi/*.so numpy/linalg/*.so PIL/_imaging.*.so pillow.libs/*"
)
_LEASE = """\
#!/bin/busybox sh
b=/bin/busybox
case $1 in
deconfig) $b ip addr flush dev $interface ;;
bound | renew)
    $b ip addr flush dev $interface
    $b ip addr add $ip/${mask:-24} dev $interface
    for gateway in $router; do $b ip route add default via $gateway dev $interface; break; done
    echo "toolchain: $interface has $ip" > /dev/console
    ;;
esac
"""
# In the server's own process, and no garbage collected on the way (the server collects it): where a processor is emulated,
# either takes a second. As root nothing is imported but the base's own Python.
_DROP = (
    "import gc, os, sys; gc.disable(); who = {who}; os.setgroups([]); os.setresgid(who, who, who); "
    'os.setresuid(who, who, who); sys.path.insert(0, "/opt/toolchain/lib"); '
    "from {module}.__main__ import main; sys.exit(main())"
)


def write(payload: Payload, out: Path) -> None:
    """Write the image. Raises PackageError for a base or kernel that does not fit, HostError without mksquashfs."""
    wish = payload.wish
    if wish.accelerator != "cpu":
        raise PackageError("--target disk has no driver for a GPU: take oci, docker or deb for --accelerator")
    base, boot = pinned_base(payload), pinned.content(wish.boot, wish.boot_sha256, "--boot")
    tools.find("mksquashfs")
    names = pinned.names(boot, wish.boot)
    kernel = _kernel(names, wish.boot)
    firmware, program, console = _FIRMWARE[wish.arch]
    stub = f"usr/lib/systemd/boot/efi/linux{firmware}.efi.stub"
    wanted = {"kernel": f"boot/vmlinuz-{kernel}", "stub": stub, "busybox": "bin/busybox"}
    found = pinned.files(boot, wanted, wish.boot)
    initial = {
        "init": _init(payload).encode(), "lease": _LEASE.encode(), "bin/busybox": found["busybox"],
        **_drivers(boot, names, kernel, wish.boot), "root.squashfs": _root(payload, base, boot),
    }  # fmt: skip
    initrd = archive.cpio(
        initial, wish.epoch, ("dev", "proc", "root", "sys"), {"init", "lease", "bin/busybox"}
    )
    # The kernel's tests of its own ciphers, which nothing here uses, would take a second of a slow start.
    line = f"console=tty0 console={console},115200 quiet panic=10 cryptomgr.notests"
    # The kernel last: it may need room behind it once it runs.
    sections = {".cmdline": line.encode() + b"\0", ".initrd": initrd, ".linux": found["kernel"]}
    seed = f"{payload.manifest.identity} {payload.version} {wish.arch}"
    out.write_bytes(esp.disk(uki.build(found["stub"], sections), program, seed))


def _kernel(names: frozenset[str], boot: Path | None) -> str:
    """The version of the one kernel in the archive."""
    found = [match[1] for name in names if (match := _KERNEL.fullmatch(name))]
    if len(found) != 1:
        raise PackageError(f"{boot}: holds {len(found)} kernels (boot/vmlinuz-…), but one is needed")
    return found[0]


def _drivers(boot: bytes, names: frozenset[str], kernel: str, path: Path | None) -> dict[str, bytes]:
    """{modules/NNN-name.ko: content} of all drivers and what they need, in the order of loading: 0NN for the system."""
    below = f"lib/modules/{kernel}/"
    places = {_plain(name): name for name in names if name.startswith(below) and name.endswith(".ko")}
    loaded: dict[str, bytes] = {}
    found: dict[str, bytes] = {}
    for stage, wanted in enumerate((ROOT_DRIVERS, DRIVERS)):
        before = len(loaded)
        waiting = list(reversed([name for name in wanted if name in places]))
        while waiting:
            contents = pinned.files(boot, {name: places[name] for name in set(waiting) - set(loaded)}, path)
            waiting = _sorted_in(waiting, contents, loaded, places)
        new = list(loaded.items())[before:]
        found |= {
            f"modules/{stage}{index:02}-{name}.ko": content for index, (name, content) in enumerate(new)
        }
    return found


def _sorted_in(
    waiting: list[str], contents: Mapping[str, bytes], loaded: dict[str, bytes], places: Mapping[str, str]
) -> list[str]:
    """Move modules whose needs are met from `waiting` (a stack) into `loaded`; give back what is left, needs on top."""
    while waiting:
        name = waiting[-1]
        if name in loaded:
            waiting.pop()
            continue
        if name not in contents:
            return waiting
        missing = [one for one in _needs(contents[name]) if one in places and one not in loaded]
        if not missing:
            loaded[name] = contents[name]
        waiting += missing
    return waiting


def _plain(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".ko").replace("-", "_")


def _needs(module: bytes) -> list[str]:
    """The modules that one names in its "depends"."""
    found = _DEPENDS.search(module)
    return [] if found is None or not found[1] else found[1].decode().replace("-", "_").split(",")


def _init(payload: Payload) -> str:
    who = USER.partition(":")[0]
    python, _, module, *arguments = command(payload.wish, "/opt/toolchain/bundle", host="0.0.0.0")
    return _INIT.format(
        environment=" ".join(f"{key}={value}" for key, value in ENVIRONMENT.items()),
        python=python,
        drop=_DROP.format(who=who, module=module),
        arguments=" ".join(arguments),
        libraries=_LIBRARIES,
    )


def _root(payload: Payload, base: bytes, boot: bytes) -> bytes:
    """The system as a squashfs: the base with the payload below /opt/toolchain."""
    carried = [one for one in system_of(boot) if one.name.startswith(_CARRIED)]
    system: tuple[sbom.DebianPackage, ...] = (*system_of(base), *carried)
    with tempfile.TemporaryDirectory() as scratch:
        root, image = Path(scratch, "root"), Path(scratch, "root.squashfs")
        pinned.unpack(base, root)
        for name in ("dev", "proc", "sys", "opt/toolchain"):
            (root / name).mkdir(parents=True, exist_ok=True)
        squash.spread(payload.tree(system=system), root / "opt" / "toolchain")
        squash.spread(bytecode.of_base(base, payload.wish.base, payload.python), root)
        squash.pack(root, payload.wish.epoch, image, "zstd")  # xz unpacks too slowly for a start
        return image.read_bytes()
