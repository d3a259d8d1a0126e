"""An authority and certificates for this machine's address, made by the openssl command. Called by rotation.py."""

import shutil
import subprocess
from pathlib import Path

from pocketlens_wire.errors import ServerFault

HAS_OPENSSL = shutil.which("openssl") is not None
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def authority(at: Path) -> Path:
    """ca.pem, and ca.key beside it."""
    _openssl(at, "req", "-x509", *_CURVE, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=pocketlens-bench")
    return at / "ca.pem"


def certificate(at: Path, name: str) -> tuple[Path, Path]:
    """NAME.pem and NAME.key, for 127.0.0.1, with NAME as its subject, good for 30 days."""
    _openssl(at, "req", *_CURVE, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (at / "names.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(
        at, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", f"{name}.pem", "-extfile", "names.ext", "-days", "30",
    )  # fmt: skip
    return at / f"{name}.pem", at / f"{name}.key"


def _openssl(at: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerFault(f"openssl {arguments[0]} left with {done.returncode}: {done.stderr.strip()[-300:]}")
