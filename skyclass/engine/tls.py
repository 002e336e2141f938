"""Certificates of clusters: each process shows its certificate, and accepts only peers with one of the same CA.

The certificate of a local cluster exists in memory only. A cluster that the scripts of cluster/local start keeps its
certificate in a folder; the scripts get its environment from `python -m skyclass.engine.tls FOLDER [--make]`.
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
    """Return certificates, as PEM text or paths, in the environment variables from which Dask reads them."""
    parts = {role: security.get_tls_config_for_role(role) for role in ROLES}
    names = {f"{role.upper()}__{kind.upper()}": parts[role][kind] for role in ROLES for kind in ("cert", "key")}
    variables = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in names.items()}
    required = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}
    return required | {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": parts["client"]["ca_file"]} | variables


def make_tls_folder(folder: Path) -> None:
    """Make a folder with a new certificate, which only the user can enter, unless the folder exists."""
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
        if not folder.exists():  # if it does, another scheduler has made it meanwhile
            raise


def read_tls_folder(folder: Path) -> Security:
    """Return the certificates in a folder; raise `ConfigError` if they are missing, expired, or open to other users."""
    from cryptography import x509
    from distributed.security import Security

    ca, cert, key = (folder / name for name in FILES)
    if missing := [path.name for path in (ca, cert, key) if not path.is_file()]:
        raise ConfigError(
            f"{folder} has no {', '.join(missing)}: scheduler.sh makes the folder; on another machine, copy it from "
            "that of the scheduler with `scp -rp`"
        )
    status = folder.stat()
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
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
    """Print shell commands that set the environment of a cluster with the certificates in a folder."""
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
