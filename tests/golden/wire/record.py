"""Record what foreign clients send: a server stands between, keeps every request's bytes, and passes them on.

Usage, from the root of the checkout, after tests/clients/install triton node:

    python tests/golden/wire/record.py

Each call becomes `<client>-<number>-<method>.bin`: its request messages as gRPC frames them on the wire, a zero byte,
the length in four bytes (big-endian), the message. What is committed is replayed for ever, by
tests/server/test_wire_goldens.py; record anew only to add a client or a call, and keep the old files under a name of
their own: they are what clients of today go on sending.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CLIENTS = Path(os.environ.get("ONNXPLAIN_CLIENTS") or ROOT / "build" / "clients")
sys.path.insert(0, str(ROOT / "tests"))

from running import MODELS, running_server  # noqa: E402


class Between(grpc.GenericRpcHandler):
    """Passes every call on to `channel` and keeps the messages of its requests, in order of the calls."""

    def __init__(self, channel: grpc.Channel):
        self.channel = channel
        self.calls: list[tuple[str, list[bytes]]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        pass_on = self.channel.stream_stream(details.method)

        def answer(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            kept: list[bytes] = []
            self.calls.append((details.method, kept))

            def tapped() -> Iterator[bytes]:
                for request in requests:
                    kept.append(request)
                    yield request

            try:
                yield from pass_on(tapped())
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return grpc.stream_stream_rpc_method_handler(answer)


def framed(messages: list[bytes]) -> bytes:
    """As on the wire."""
    return b"".join(struct.pack(">BI", 0, len(message)) + message for message in messages)


def main() -> None:
    """Run each client against the one between, write its calls."""
    commands = {
        "triton": [CLIENTS / "triton" / "bin" / "python", HERE / "ask_triton.py"],
        "node": ["node", HERE / "ask_node.js"],
    }
    with running_server(MODELS) as real, grpc.insecure_channel(real.address) as channel:
        for client, command in commands.items():
            between = Between(channel)
            server = grpc.server(ThreadPoolExecutor(8), handlers=[between])
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            env = {**os.environ, "NODE_PATH": str(CLIENTS / "node" / "node_modules")}
            subprocess.run([*command, address, str(ROOT / "protos")], env=env, check=True, timeout=120)
            server.stop(1).wait()
            for old in HERE.glob(f"{client}-*.bin"):
                old.unlink()
            for number, (method, messages) in enumerate(between.calls):
                path = HERE / f"{client}-{number:02}-{method.rpartition('/')[2]}.bin"
                path.write_bytes(framed(messages))
                print(path.name, len(messages), sum(map(len, messages)))


if __name__ == "__main__":
    main()
