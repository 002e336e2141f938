"""Certificates of clusters: a process of a cluster shows one, and accepts only peers that show one of the same CA.

The certificate of a local cluster exists in memory only. A cluster that the scripts of cluster/local start keeps its
own in a folder; `python -m skyclass.engine.tls FOLDER [--make]` prints the environment of such a cluster for them.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, SkyclassError
from ..signals import leave
from .dask_config import dask_environment, load_dask

if TYPE_CHECKING:
    from distributed.security import Security

FILES = ("ca.pem", "cert.pem", "key.pem")
ROLES = ("scheduler", "worker", "client")


def tls_environment(security: Security) -> dict[str, str]:
    """Return certificates, PEM text or paths, as the environment variables from which processes of Dask read them."""
    parts = {role: security.get_tls_config_for_role(role) for role in ROLES}
    names = {f"{role.upper()}__{kind.upper()}": parts[role][kind] for role in ROLES for kind in ("cert", "key")}
    variables = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in names.items()}
    required = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
    return required | {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": parts["client"]["ca_file"]} | variables


def make_tls_folder(folder: Path) -> None:
    """Make a folder with a new certificate, which only the user may enter, unless the folder is there."""
    from distributed.security import Security

    if folder.exists():
        return
    security = Security.temporary()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    for name, text in zip(
        FILES, (security.tls_ca_file, security.tls_worker_cert, security.tls_worker_key), strict=True
    ):
        (draft / name).touch(mode=0o600)
        (draft / name).write_text(text)
    try:
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft)
        if not folder.exists():  # another scheduler has made it meanwhile
            raise


def read_tls_folder(folder: Path) -> Security:
    """Return the certificates in a folder; `ConfigError` when they are missing or expired, or open to other users."""
    from cryptography import x509
    from distributed.security import Security

    ca, cert, key = (folder / name for name in FILES)
    if missing := [path.name for path in (ca, cert, key) if not path.is_file()]:
        raise ConfigError(
            f"{folder} has no {', '.join(missing)}: scheduler.sh makes the folder; on another machine, copy it from "
            "that of the scheduler with `scp -rp`"
        )
    facts = folder.stat()
    if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
        raise ConfigError(f"{folder} is open to other users, who could run code in the cluster: chmod 700 {folder}")
    try:
        until = x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc
    except ValueError as error:
        raise ConfigError(
            f"{cert} is no certificate ({error}): remove {folder}, scheduler.sh makes it again"
        ) from error
    if until < datetime.now(UTC):
        raise ConfigError(f"{cert} has expired on {until:%Y-%m-%d}: remove {folder}, scheduler.sh makes it again")
    files = {f"tls_{role}_{kind}": str(path) for role in ROLES for kind, path in (("cert", cert), ("key", key))}
    return Security(require_encryption=True, tls_ca_file=str(ca), **files)


def main(arguments: list[str]) -> None:
    """Print the environment of a cluster with the certificates in a folder, as a shell reads it."""
    try:
        load_dask()
        folder = Path(arguments[0]).absolute()
        if "--make" in arguments:
            make_tls_folder(folder)
        environment = dask_environment() | tls_environment(read_tls_folder(folder))
    except (SkyclassError, OSError) as error:
        leave(str(error), ConfigError.exit_code)
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main(sys.argv[1:])
