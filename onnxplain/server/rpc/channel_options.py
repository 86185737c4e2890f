"""gRPC's own limits: of a message, of connections, their number, age and silence."""

from __future__ import annotations

from onnxplain.server.options import ServerOptions

HANDSHAKE_SECONDS = 10.0  # for TLS, and for the first words of HTTP/2


def channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    """For the server. A worker's socket has one client, the parent, who may stay as long as it likes."""
    found = [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # else a second server would take half of the calls in silence
        # gRPC refuses streams while so many are not cleared away, answered ones too: clients see UNAVAILABLE. Far above
        # what one connection needs, so that our own admission control is what says no.
        ("grpc.max_concurrent_streams", 1024),
    ]
    if options.socket is not None:
        return found
    return [
        *found,
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
        ("grpc.max_connection_age_ms", 1_800_000),  # so that balancers in front see new connections
        ("grpc.max_connection_age_grace_ms", 60_000),
        ("grpc.server_handshake_timeout_ms", int(1000 * HANDSHAKE_SECONDS)),
        ("grpc.max_connection_idle_ms", max(1, int(1000 * options.idle_seconds))),
        ("grpc.max_allowed_incoming_connections", options.max_connections),  # those beyond are closed at once
    ]
