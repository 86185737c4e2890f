"""`onnxplain serve` answers HTTP beside gRPC, and ends in good order."""

from __future__ import annotations

import http.client
import json
import signal
import socket

from running import running_server


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def test_serve_listens_for_http_too(models):
    port = free_port()
    with running_server(models, "--http-port", str(port), env={"ONNXPLAIN_HTTP_CORS": "https://a.example"}) as running:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v2/health/ready", headers={"origin": "https://a.example"})
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read()) == {"ready": True}
        assert answer.getheader("access-control-allow-origin") == "https://a.example"
        assert f"http address=127.0.0.1:{port}" in running.log
        running.process.send_signal(signal.SIGTERM)  # with the connection still open
        assert running.process.wait(20) == 0
        assert "Traceback" not in running.log
