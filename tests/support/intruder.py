"""Another user of this machine, who tries to run a function on a scheduler, a worker and a nanny.

Reads {"uid": ..., "scheduler": ADDRESS, "servers": [ADDRESS, ...], "ways": [...], "member": {variables} or null} and
prints what came of each way: the uid of the process that ran the function, or the name of the error. It imports
everything before it changes the user: another user may not be able to read the interpreter.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import Awaitable

import dask
import distributed.comm.tcp  # noqa: F401
from distributed import Client
from distributed.core import clean_exception, connect
from distributed.protocol.pickle import dumps
from distributed.security import Security

PATIENCE_S = 10


def without_certificate() -> Security:
    """Return what speaks TLS, trusts everybody and shows no certificate."""

    class Anonymous(Security):
        def get_connection_args(self, role: str) -> dict[str, object]:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return {"ssl_context": context, "require_encryption": True, "extra_conn_args": {}}

    return Anonymous(require_encryption=True)


async def run_on_scheduler(address: str, security: Security) -> int:
    async with Client(address, security=security, asynchronous=True, timeout=PATIENCE_S) as client:
        return await client.run_on_scheduler(os.getuid)


async def submit(address: str, security: Security) -> int:
    async with Client(address, security=security, asynchronous=True, timeout=PATIENCE_S) as client:
        return await client.submit(os.getuid, pure=False)


async def run_on_server(address: str, security: Security) -> int:
    comm = await connect(address, timeout=PATIENCE_S, **security.get_connection_args("client"))
    try:
        await comm.write(
            {"op": "run", "function": dumps(os.getuid), "args": dumps(()), "kwargs": dumps({}), "reply": True}
        )
        answer = await comm.read()
    finally:
        comm.abort()
    if answer["status"] != "OK":
        raise clean_exception(**answer)[1]
    return int(answer["result"])


async def outcome(attempt: Awaitable[int]) -> str:
    try:
        return f"ran as uid {await asyncio.wait_for(attempt, 2 * PATIENCE_S)}"
    except (OSError, TypeError, RuntimeError) as error:
        return type(error).__name__


async def attempts(asked: dict, means: dict[str, tuple[str, Security]]) -> dict[str, str]:
    found = {}
    for name in asked["ways"]:
        protocol, security = means[name]
        scheduler, *servers = (protocol + a[a.index("://") :] for a in (asked["scheduler"], *asked["servers"]))
        ways = {"scheduler": run_on_scheduler(scheduler, security), "task": submit(scheduler, security)}
        ways |= {f"server {i}": run_on_server(address, security) for i, address in enumerate(servers)}
        results = await asyncio.gather(*map(outcome, ways.values()))
        found |= {f"{name}: {way}": result for way, result in zip(ways, results, strict=True)}
    return found


def main() -> None:
    asked = json.load(sys.stdin)
    means = {"tcp": ("tcp", Security(require_encryption=False))}
    means |= {"no certificate": ("tls", without_certificate()), "self-made": ("tls", Security.temporary())}
    if asked["member"]:
        dask.config.update(dask.config.config, dask.config.collect_env(asked["member"]))
        means["member"] = "tls", Security()
    os.setgroups([])
    os.setgid(asked["uid"])
    os.setuid(asked["uid"])
    print(json.dumps(asyncio.run(attempts(asked, means))))


if __name__ == "__main__":
    main()
