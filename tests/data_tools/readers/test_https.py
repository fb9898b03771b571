"""Links to HTTPS servers: one without a trusted certificate gives no image."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from image_server import serving
from made import photo, quarantine, read_rows

ROOT = Path(__file__).parents[3]
Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def certificate(name: str, signer: Signed | None = None) -> Signed:
    """A host's certificate signed by an authority, or without a signer the self-signed one of an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    authority = x509.AuthorityKeyIdentifier  # Python 3.13 requires it
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority.from_issuer_public_key((signer[1] if signer else key).public_key()), critical=False)
        .add_extension(usage(signs=signer is None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return made.sign(signer[1] if signer else key, hashes.SHA256()), key


def usage(signs: bool) -> x509.KeyUsage:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    never = dict.fromkeys((*names, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **never)


def server_context(folder: Path, signed: Signed) -> ssl.SSLContext:
    private = signed[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{signed[0].serial_number}.pem"
    path.write_bytes(signed[0].public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def test_only_servers_with_a_trusted_certificate_for_their_name_are_read(tmp_path: Path) -> None:
    ours, others = certificate("our authority"), certificate("another authority")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(ours[0].public_bytes(serialization.Encoding.PEM))
    good, bad = (server_context(tmp_path, certificate("localhost", signer)) for signer in (ours, others))

    def image(number: int) -> bytes:
        return photo(number, size=(60, 45))

    with serving(image, good) as (_, port), serving(image, bad) as (_, untrusted):
        links = {
            "https": f"https://localhost:{port}/ok/1.jpg",
            "moved": f"https://localhost:{port}/moved/2.jpg",
            "another name": f"https://127.0.0.2:{port}/ok/3.jpg",
            "another authority": f"https://localhost:{untrusted}/ok/4.jpg",
        }
        pq.write_table(
            pa.table({"URL": list(links.values()), "TEXT": list(links), "key": list(links)}), tmp_path / "links.parquet"
        )
        command = [sys.executable, "-m", "data_tools", "shard", "urls", "links.parquet", "--allow-loopback"]
        subprocess.run(
            [*command, "--retries", "0", "--workers", "1", "--tolerate", "1", "--out", "out"],
            cwd=tmp_path,
            env=os.environ | {"SSL_CERT_FILE": str(trusted), "PYTHONPATH": str(ROOT)},
            check=True,
        )
    assert [(row["captions"], row["image"]) for row in read_rows(tmp_path / "out")] == [
        (["https"], image(1)),
        (["moved"], image(2)),
    ]
    assert set(quarantine(tmp_path / "out").values()) == {"download failed (certificate not valid)"}
    assert len(quarantine(tmp_path / "out")) == 2
