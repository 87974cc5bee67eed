"""Certificates for tests, made by openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def make(folder: Path, name: str, *, issuer: str = "", names: str = "IP:127.0.0.1") -> Path:
    """<name>.pem and <name>.key in `folder`: an authority, or what the authority `issuer` vouches for. Returns the certificate."""
    certificate = folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-out", str(certificate), "-keyout", str(folder / f"{name}.key")]
    if issuer:
        command += ["-CA", str(folder / f"{issuer}.pem"), "-CAkey", str(folder / f"{issuer}.key"), "-addext", "basicConstraints=CA:FALSE"]
        command += ["-addext", f"subjectAltName={names}"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate


def server(folder: Path, name: str, *, clients: str = "") -> ssl.SSLContext:
    """For a server with the certificate `name`; it wants one of those that `clients` vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / f"{clients}.pem")
    return context
