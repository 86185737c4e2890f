"""A model behind inner tensors that a method moves: what answers there, and what it is fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxplain.compile import Compiled, Request, Resolved
from onnxplain.compile.tail import GraphTail, named
from onnxplain.errors import ConversionChanged
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.frontend.compare import mismatch
from onnxplain.frontend.normalise import Normalised
from onnxplain.frontend.verify import Reference
from onnxplain.runtime.session import Array
from onnxplain.subject import Subject

ROUNDING = 1e-2  # of the largest value: two forms of a model on any provider agree to that, a wrong cut does not


class LayerTail:
    """subject: the model from the tensors on, which are its inputs. graph: that of the explanation, cut there too.

    proven: whether axis 0 of all that is moved is known to count samples. What goes around the tensors stays what it is
    for the sample: it is computed once, with them, and fed (`feeds`).
    """

    def __init__(self, subject: Subject, graph: ExplanationGraph | None, at: Sequence[str]):
        """graph: attributed to the tensors. Raises UsageError for a tensor that cannot move."""
        self.at, explained = tuple(at), subject.resolved.explained
        tails = [GraphTail(subject.normalised.model, at, explained)]
        if graph is not None:
            ends = [*graph.compiled.relevances, *explained]
            tails.append(GraphTail(graph.compiled.model, at, ends, graph.compiled.seeds))
        companions, self.proven = named(tails), all(tail.proven for tail in tails)
        own = {spec.name for spec in subject.inputs}
        self._prefix = subject.part((*at, *(name for name in companions if name not in own)))
        self._kept = [name for name in companions if name in own]
        bounded = subject.normalised.reference.bounded
        behind = f"behind {', '.join(at)}"
        self.subject = Subject(
            subject.source,
            Normalised(tails[0].cut(companions), subject.source, Reference({}, {}, bounded)),
            Request(explain=explained, attribute_to=self.at),
            Resolved(explained, subject.resolved.heads, explained),
            opener=lambda part, role: subject.open(part, f"{role} {behind}"),
            memory=subject.memory,
            batch_rows=subject.batch_rows,
        )
        self.graph: ExplanationGraph | None = None
        if graph is not None:
            compiled = graph.compiled
            streams = compiled.streams and self.proven
            part = Compiled(
                tails[1].cut(companions), compiled.seeds, compiled.relevances, streams, compiled.provenance, [], 0.0
            )
            self.graph = ExplanationGraph(self.subject, graph.recipe, compiled=part)

    @classmethod
    def of(cls, subject: Subject, graph: ExplanationGraph | None, at: Sequence[str]) -> LayerTail:
        """The one there is already, or a new one."""
        tails = subject.tails if graph is None else graph.tails
        if tuple(at) not in tails:
            tails[tuple(at)] = cls(subject, graph, at)
        tail = tails[tuple(at)]
        assert isinstance(tail, cls)
        return tail

    def read(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The values of the tensors. feeds: of the whole model."""
        found = self._prefix.run(feeds)
        return {name: found[name] for name in self.at}

    def feeds(self, feeds: Mapping[str, Array], values: Array) -> dict[str, Array]:
        """Of the tail, for feeds of the whole model. values: what that answered.

        Raises ConversionChanged where the tail answers otherwise.
        """
        fed = {**self._prefix.run(feeds), **{name: feeds[name] for name in self._kept}}
        (explained,) = self.subject.resolved.explained
        found = self.subject.forward(fed, [explained])
        bounded = self.subject.normalised.reference.bounded
        if (problem := mismatch({explained: values}, found, bounded, ROUNDING)) is not None:
            raise ConversionChanged(f"the model cut at {', '.join(self.at)} answers differently: {problem}.")
        return fed
