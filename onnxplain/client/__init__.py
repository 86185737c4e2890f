"""Ask a running server: the same Explanation as offline, over gRPC. `Client` waits, `AsyncClient` is for asyncio.

`dialogues.py` says which calls are made; the two clients only differ in how they wait for the answers.
"""

from onnxplain.client.aio import AsyncClient
from onnxplain.client.calls import ModelState
from onnxplain.client.responses import RemoteExplanation
from onnxplain.client.sync import Client

__all__ = ["AsyncClient", "Client", "ModelState", "RemoteExplanation"]
