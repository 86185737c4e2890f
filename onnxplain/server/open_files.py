"""How many files the process may have open: each connection is one."""

from __future__ import annotations

import logging

from onnxplain.server.telemetry.logs import event

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment, unused-ignore]

LOG = logging.getLogger("onnxplain.server")
OTHERS = 256  # files that are no connections: models, weights, sockets of workers, logs
MOST = 65_536  # enough; where the system's limit is no limit, Python would close as many at each new process


def raise_limit(connections: int) -> None:
    """Take all that the system allows; say so where that is less than so many connections need."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(MOST, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if max(soft, most) < connections + OTHERS:
        event(
            LOG,
            logging.WARNING,
            "few open files allowed",
            limit=max(soft, most),
            connections=connections,
            advice="raise the limit (ulimit -n), or lower --max-connections",
        )
