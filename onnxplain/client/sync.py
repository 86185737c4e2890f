"""The client that waits for its answers. Any number of threads may share one."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from onnxplain.client.calls import ModelState, RpcCall, pauses, serialised, worth_another
from onnxplain.client.connection import OPTIONS, Connection
from onnxplain.client.dialogues import Ask, Dialogues
from onnxplain.client.errors import error_of
from onnxplain.client.requests import X
from onnxplain.client.responses import RemoteExplanation
from onnxplain.client.streams import Progress
from onnxplain.errors import OnnxplainError, UsageError
from onnxplain.inputs import Loaded
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.v1 import explainer_pb2 as v1

T = TypeVar("T")


class Client:
    """A server of models and their explanations.

    address: HOST:PORT. token: for servers with a --token-file. ca, cert, key: PEM files; ca turns TLS on ("system": the
    machine's own authorities), cert and key are for mutual TLS. timeout: seconds for each method of this class, all its
    calls and retries together. retries: further tries where the server is UNAVAILABLE, and for nothing else.
    insecure: send the token in plain text to another machine. Every method raises the errors of onnxplain.errors.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        insecure: bool = False,
    ):
        self._connection = Connection(address, token, ca, cert, key, insecure)
        self._timeout, self._retries, self._dialogues = timeout, retries, Dialogues()
        self._metadata = self._connection.metadata()
        credentials = self._connection.credentials()
        self._channel = (
            grpc.insecure_channel(address, OPTIONS)
            if credentials is None
            else grpc.secure_channel(address, credentials, OPTIONS)
        )
        self._methods: dict[str, Any] = {}

    def explain(
        self,
        model: str,
        x: X,
        target: Ask | Sequence[Ask] = "predicted",
        *,
        version: str = "",
        method: str | None = None,
        recipe: str | Recipe | Mapping[str, Any] | None = None,
        explain: str = "",
        head: str = "",
        attribute_to: str | Sequence[str] = (),
        outputs: str | Sequence[str] = (),
        ledger: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> RemoteExplanation:
        """Why the model answers as it does for a batch, for one or several targets.

        x: (N, …) in the model's units, arrays by input name, or what the model's own settings prepare: the path of a
        picture, .npy, .npz or .csv, a list of paths (a batch), a PIL image. target: `predicted`, `top3`, a class name,
        an index, "A vs B", or several. version: "", a number or an alias such as "@champion". method, options (of the
        method: composite, rules, steps …, and base): over the model's own defaults; recipe: a name of `recipes()` or a
        whole recipe, instead of these.
        explain: the tensor with the scores, "" the model's own. head: cut or keep a final softmax. attribute_to:
        tensors that get relevance. outputs: forward tensors to return in `kept`. ledger: where relevance went, node by
        node.
        progress: called with (stage, completed, total) where tensors travel in pieces, and while a looped method runs.
        """
        return self._run(
            self._dialogues.explain(
                model, x, target, version, method, recipe, options, explain, head, attribute_to,
                outputs, ledger, progress,
            ),
            timeout,
        )  # fmt: skip

    def infer(
        self,
        model: str,
        x: X,
        outputs: str | Sequence[str] = (),
        *,
        version: str = "",
        parameters: Mapping[str, str | int | bool] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """The model's outputs, or for `NAME.explain` those of its compiled graph: plain Open Inference Protocol.

        x: as for `explain`. outputs: names, default all. parameters: for `NAME.explain`, onnxplain_target="tabby".
        """
        return self._run(self._dialogues.infer(model, x, outputs, version, parameters or {}), timeout)

    def prepare(self, model: str, x: X, *, version: str = "", timeout: float | None = None) -> Loaded:
        """What `explain` would send for x; `explain` takes it, so that several recipes prepare it once."""
        return self._run(self._dialogues.prepare(model, x, version), timeout)

    def explainability(
        self, model: str, *, version: str = "", timeout: float | None = None
    ) -> v1.GetExplainabilityResponse:
        """What the model takes and returns, which methods work on it and what blocks the others. Asked anew."""
        return self._run(self._dialogues.explainability(model, version), timeout)

    def recipes(self, *, timeout: float | None = None) -> list[v1.RecipeInfo]:
        """The recipes that `explain` takes by name."""
        return self._run(self._dialogues.recipes(), timeout)

    def compile(
        self,
        model: str,
        *,
        version: str = "",
        method: str | None = None,
        recipe: str | Recipe | Mapping[str, Any] | None = None,
        explain: str = "",
        head: str = "",
        attribute_to: str | Sequence[str] = (),
        timeout: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> bytes:
        """The compiled graph as an ONNX file, from a server that allows it (--allow-export)."""
        return self._run(
            self._dialogues.compile(model, version, method, recipe, options, explain, head, attribute_to, progress),
            timeout,
        )

    def models(self, *, timeout: float | None = None) -> list[ModelState]:
        """Every version of every model the server knows, explanations (`NAME.explain`) among them."""
        return self._run(self._dialogues.models(), timeout)

    def ready(self, model: str = "", *, version: str = "", timeout: float | None = None) -> bool:
        """Whether the server, or one model, answers now. False also where nothing listens."""
        return self._run(self._dialogues.ready(model, version), timeout)

    def close(self) -> None:
        """End the connection; calls that wait are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Generator[RpcCall, Any, T], timeout: float | None) -> T:
        """Make the calls of a dialogue one after another."""
        seconds = self._timeout if timeout is None else timeout
        until = time.monotonic() + seconds
        try:
            call = next(steps)
            while True:
                try:
                    answer = self._answer(call, until, seconds)
                except OnnxplainError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _answer(self, call: RpcCall, until: float, seconds: float) -> Any:
        """One call, tried again where that is safe and there is time."""
        waits = pauses(self._retries)
        while True:
            try:
                return self._once(call, max(0.001, until - time.monotonic()))
            except grpc.RpcError as error:
                meant = error_of(error, self._connection.address, seconds)
            pause = worth_another(meant, next(waits, float("inf")), until - time.monotonic())
            if pause is None:
                raise meant
            time.sleep(pause)

    def _once(self, call: RpcCall, timeout: float) -> Any:
        method = self._methods.get(call.path)
        if method is None:
            method = getattr(self._channel, call.kind)(call.path, serialised, call.reply.FromString)
            self._methods[call.path] = method
        try:
            answer = method(call.outgoing(), timeout=timeout, metadata=self._metadata)
        except ValueError as error:
            raise UsageError("the client is closed; make a new one.") from error
        if call.collector is None:
            return answer
        collector = call.collector()
        try:
            for message in answer:
                collector.take(message)
        finally:
            answer.cancel()  # where it ended already, nothing happens
        return collector.result()
