"""`toolchain package` and `toolchain trust`: a bundle made into what a device installs; keys and signatures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(path_type=Path, dir_okay=False)
# A file, a hash or a name that the target does not read would pass unseen where it is wrong.
_READ_BY: Mapping[str, tuple[str, ...]] = {
    "wheels": ("docker", "oci", "deb", "rauc", "mender", "disk"),
    "base": ("oci", "disk"),
    "base_sha256": ("oci", "disk"),
    "boot": ("disk",),
    "boot_sha256": ("disk",),
    "device": ("rauc", "mender"),
}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    help="docker, oci, deb, triton, modelpack, rauc, mender or disk (docs/deploy.md).",
)
@click.option(
    "--arch", type=click.Choice(["amd64", "arm64"]), default="amd64", show_default=True,
    help="The device's processor, whose wheels --wheels holds.",
)  # fmt: skip
@click.option("--out", required=True, type=_FILE, help="The file to write; a signature lies beside it.")
@click.option(
    "--accelerator", type=click.Choice(["cpu", "cuda", "jetson"]), default="cpu", show_default=True,
    help="Which onnxruntime goes along, and which Dockerfile.",
)  # fmt: skip
@click.option(
    "--wheels", type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the wheels of numpy, pillow, onnxruntime and what serving needs ('make device-wheels').",
)  # fmt: skip
@click.option("--base", type=_FILE, help="oci, disk: root file system as a tar ('make base').")
@click.option("--base-sha256", metavar="HEX", help="oci, disk: what the base must hash to.")
@click.option("--boot", type=_FILE, help="disk: kernel, EFI stub and busybox as a tar ('make boot').")
@click.option("--boot-sha256", metavar="HEX", help="disk: what it must hash to.")
@click.option(
    "--version", "version", help="The package's version; by default ours with the bundle's identity."
)
@click.option("--device", help="rauc, mender: the kind of device that it fits; by default toolchain-ARCH.")
@click.option("--key", type=_FILE, help="Private key to sign with ('toolchain trust new').")
@click.option("--certificate", type=_FILE, help="The key's certificate: then signed as CMS, for --ca.")
def package(bundle: Path, target: str, out: Path, **options: Any) -> None:
    """Make a bundle into what a device installs: image, Debian package, model repository, update.

    Times inside are SOURCE_DATE_EPOCH, or 1980: the same inputs give the same bytes.

    \b
    Example:
      toolchain package runs/tiles/bundle --target deb --arch arm64 --wheels wheels-arm64 --out tiles.deb
      toolchain package runs/tiles/bundle --target triton --out tiles.tar
    """
    from toolchain.package import TARGETS, Wish
    from toolchain.package import package as write
    from toolchain.package.distribution import epoch

    for option, targets in _READ_BY.items():
        if options[option] is not None and target in TARGETS and target not in targets:
            flag = f"--{option.replace('_', '-')}"
            raise click.UsageError(f"{flag} is for {' and '.join(targets)}, not for {target}: leave it out.")
    for path in write(Wish(bundle, epoch=epoch(), **options), target, out):
        click.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@click.group()
def trust() -> None:
    """Keys, an own certificate authority, signatures: offline, by openssl.

    \b
    Example:
      toolchain trust new keys --name "Plant 7"
      toolchain trust sign tiles.deb --key keys/signing.key --certificate keys/signing.pem
      toolchain trust verify tiles.deb --ca keys/ca.pem
    """


@trust.command("new")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", default="toolchain", show_default=True, help="Who the certificates say they are of.")
def new(folder: Path, name: str) -> None:
    """Make a CA, and a signing key with its certificate, in FOLDER.

    \b
    Example:
      toolchain trust new keys --name "Plant 7"
    """
    from toolchain.package.trust import new_keys

    new_keys(folder, name)
    click.echo(f"{folder}: ca.pem and signing.pub go onto devices; ca.key and signing.key never do")


@trust.command("sign")
@click.argument("file", type=_FILE)
@click.option("--key", required=True, type=_FILE, help="Private key.")
@click.option("--certificate", type=_FILE, help="The key's certificate: CMS beside it (.p7s), else .sig.")
def sign(file: Path, key: Path, certificate: Path | None) -> None:
    """Sign a file; the signature lies beside it.

    \b
    Example:
      toolchain trust sign tiles.tar --key keys/signing.key --certificate keys/signing.pem
    """
    from toolchain.package.trust import sign as write

    click.echo(write(file, key, certificate))


@trust.command("seal")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
def seal(bundle: Path, out: Path) -> None:
    """Copy BUNDLE with its model files encrypted; the key comes from TOOLCHAIN_MODEL_KEY_FILE or TOOLCHAIN_MODEL_KEY.

    \b
    Example:
      openssl rand -hex 32 > model.key
      TOOLCHAIN_MODEL_KEY_FILE=model.key toolchain trust seal runs/tiles/bundle --out sealed
    """
    from toolchain.package.seal import write

    write(bundle, out)
    click.echo(f"{out}: its model files open with the key only")


@trust.command("verify")
@click.argument("file", type=_FILE)
@click.option("--ca", type=_FILE, help="Certificate of the CA that is trusted.")
@click.option("--public-key", type=_FILE, help="Public key that is trusted.")
def verify(file: Path, ca: Path | None, public_key: Path | None) -> None:
    """Check the signature beside a file; exit code 3 when it is missing, another's, or the file was changed.

    \b
    Example:
      toolchain trust verify tiles.deb --ca keys/ca.pem
    """
    from toolchain.package.trust import verify as check

    click.echo(f"signed: {file} ({check(file, ca=ca, public_key=public_key)})")
