"""Certificates for tests, made by the openssl command: authorities, and what they sign.

Keys are small and quick (P-256). What is signed is for this machine's names unless said otherwise."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = "DNS:localhost,IP:127.0.0.1"
HAS_OPENSSL = shutil.which("openssl") is not None
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


def authority(at: Path, name: str) -> None:
    """NAME.pem and NAME.key."""
    _must("req", "-x509", *_CURVE, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", at=at)


def certificate(at: Path, name: str, *, ca: str = "ca", names: str = HERE, days: tuple[str, str] | None = None) -> None:
    """NAME.pem and NAME.key, signed by `ca`; days: first and last, as in 20200101, else from now for two days."""
    _must("req", *_CURVE, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", at=at)
    (at / f"{name}.ext").write_text(f"subjectAltName={names}\n")
    if days is None:
        _must(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-extfile", f"{name}.ext", "-days", "2", at=at,
        )  # fmt: skip
        return
    # `openssl x509` takes dates only since 3.4, `openssl ca` has always taken them; it wants a small book-keeping.
    (at / "index.txt").write_text("")
    (at / "ca.conf").write_text(
        "[ca]\ndefault_ca=it\n[it]\ndatabase=index.txt\nnew_certs_dir=.\nrand_serial=yes\ndefault_md=sha256\n"
        "policy=any\n[any]\ncommonName=supplied\n"
    )
    first, last = (f"{day}000000Z" for day in days)
    _must(
        "ca", "-batch", "-config", "ca.conf", "-in", f"{name}.csr", "-cert", f"{ca}.pem", "-keyfile", f"{ca}.key",
        "-out", f"{name}.pem", "-extfile", f"{name}.ext", "-startdate", first, "-enddate", last, "-notext", at=at,
    )  # fmt: skip


def _must(*arguments: str, at: Path) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=at, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
