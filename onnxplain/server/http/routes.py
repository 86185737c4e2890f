"""Every endpoint there is: where it lies, which method of the gRPC services it stands for, what it is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxplain.server.http import kserve_v1 as v1
from onnxplain.server.http import open_inference as v2
from onnxplain.server.http.explain import model_explain
from onnxplain.server.http.reply import Reply
from onnxplain.server.http.request import HttpRequest
from onnxplain.server.http.services import Services

INFERENCE, EXPLAINER = "inference.GRPCInferenceService", "onnxplain.v1.ExplainerService"
Verb = Literal["GET", "POST"]
Body = Literal["", "json", "infer", "explain", "predict"]


@dataclass(frozen=True)
class Endpoint:
    """One endpoint. stands_for: the gRPC method whose scope, counters and limits it shares. body: what it takes."""

    verb: Verb
    path: str
    stands_for: str
    answer: Callable[[Services, HttpRequest], Awaitable[Reply]]
    body: Body = ""

    @property
    def name(self) -> str:
        """The method's, as scopes and metrics have it."""
        service = EXPLAINER if self.stands_for in OF_EXPLAINER else INFERENCE
        return f"/{service}/{self.stands_for}"

    @property
    def summary(self) -> str:
        """The first line of its function's docstring."""
        return (self.answer.__doc__ or "").partition("\n")[0]


OF_EXPLAINER = ("Explain", "GetExplainability", "ListRecipes")
VERSIONED = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


def _of_model(
    verb: Verb, tail: str, stands_for: str, answer: Callable[[Services, HttpRequest], Awaitable[Reply]], body: Body = ""
) -> list[Endpoint]:
    """The same for the version that the server chooses, and for one that the address names."""
    return [Endpoint(verb, f"{head}{tail}", stands_for, answer, body) for head in VERSIONED]


# The first that fits an address answers: `{model}` would take what stands behind it for a name.
ENDPOINTS: Sequence[Endpoint] = [
    Endpoint("GET", "/v2", "ServerMetadata", v2.server_metadata),
    Endpoint("GET", "/v2/health/live", "ServerLive", v2.server_live),
    Endpoint("GET", "/v2/health/ready", "ServerReady", v2.server_ready),
    Endpoint("GET", "/v2/models/stats", "ModelStatistics", v2.model_statistics),
    *_of_model("GET", "", "ModelMetadata", v2.model_metadata),
    *_of_model("GET", "/ready", "ModelReady", v2.model_ready),
    *_of_model("GET", "/config", "ModelConfig", v2.model_config),
    *_of_model("GET", "/stats", "ModelStatistics", v2.model_statistics),
    *_of_model("POST", "/infer", "ModelInfer", v2.model_infer, "infer"),
    *_of_model("POST", "/explain", "Explain", model_explain, "explain"),
    Endpoint("GET", "/v1/models", "RepositoryIndex", v1.model_list),
    Endpoint("POST", "/v1/models/{model}:predict", "ModelInfer", v1.predict, "predict"),
    Endpoint("POST", "/v1/models/{model}:explain", "Explain", v1.explain, "predict"),
    Endpoint("GET", "/v1/models/{model}", "ModelReady", v1.ready),
    Endpoint("POST", "/v2/repository/index", "RepositoryIndex", v2.repository_index, "json"),
    Endpoint("POST", "/v2/repository/models/{model}/load", "RepositoryModelLoad", v2.model_load, "json"),
    Endpoint("POST", "/v2/repository/models/{model}/unload", "RepositoryModelUnload", v2.model_unload, "json"),
]
