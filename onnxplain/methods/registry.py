"""The registry of methods: a name users know, what it is made of, who says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from onnxplain.errors import UnknownName, UsageError
from onnxplain.methods.options import Option, declared
from onnxplain.registry import Registry

BASELINE = (
    "What the input is compared with, in model units: one number, one for each channel, or input: fed beside it as "
    "`<input>.reference`."
)
Family = Literal["one-pass", "looped", "forward-only"]
Channels = Literal["sum", "max", "mean"]
Need = Literal["none", "optional", "required"]
Layer = Literal["", "read", "moved", "followed"]


@dataclass(frozen=True)
class Form:
    """One way of running a one-pass method.

    start, finish: names in `rules.starts` and `rules.finishes`. passes: for each pass over the graph, what it does to
    the rule of the last linear node ("" leaves it alone), or "derivative" for a pass without rules.
    """

    start: str
    finish: str
    passes: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Method:
    """What every method says of itself.

    channels: how a picture's channels are reduced to a map. signed: whether the map has two signs.
    """

    name: str
    doc: str
    cite: str
    channels: Channels = "sum"
    signed: bool = True

    family: ClassVar[Family]

    @property
    def sums(self) -> bool:
        """Whether elements have shares of something, so that their sum says anything; else each has a whole group's."""
        return self.channels != "mean"

    @property
    def options(self) -> Mapping[str, Option]:
        """Its options by name; none are known of a method that only a newer server has."""
        return {}


@dataclass(frozen=True)
class OnePass(Method):
    """A method that is wholly in the compiled graph.

    composite: the one it takes unless told otherwise. forms: the first is the default. reference: it compares the input
    with a baseline. maps: it attributes to a feature
    map, the last one unless told otherwise, and answers with one number for each position of it. weighed: its answer is
    multiplied by a map of the last feature map. biases: its answer is a map with one channel, of all biases too.
    """

    composite: str = "none"
    forms: Mapping[str, Form] = None  # type: ignore[assignment]
    reference: bool = False
    maps: bool = False
    weighed: bool = False
    biases: bool = False
    family: ClassVar[Family] = "one-pass"

    @property
    def relevance(self) -> bool:
        """Whether it hands on relevance, by rules; else gradients, by derivatives."""
        return self.form().start not in ("seed", "seed_twice")

    @property
    def attributes(self) -> bool:
        """Whether it gives each element of an input something: only then a looped method can run it."""
        return not self.maps and not self.biases

    @property
    def per_unit(self) -> bool:
        """Whether it answers per unit of the input, as a gradient does; else its answer is a share of the score."""
        return not self.relevance and self.attributes and not self.form().finish.startswith("times_")

    @property
    def derivative(self) -> bool:
        """Whether its answer is the score's derivative itself, not a modified one."""
        return self.per_unit and self.composite == "none" and self.form().finish == "gradient"

    @cached_property
    def options(self) -> Mapping[str, Option]:
        """Composite, rules and form, where it takes them."""
        found = []
        if self.relevance:
            found.append(Option("composite", self.composite, ("str",), doc="Which rule where."))
            found.append(Option("rules", (), ("texts",), doc="Rules of single nodes, before the composite's."))
        if self.reference:
            found.append(Option("baseline", 0.0, ("float", "list"), ("input",), doc=BASELINE))
        if len(self.forms) > 1:
            names = tuple(self.forms)
            found.append(Option("form", names[0], (), names, doc="By the paper, or as its code has it."))
        return {option.name: option for option in found}

    def form(self, name: str | None = None) -> Form:
        """A form by name; the default one for None."""
        if name is None:
            return next(iter(self.forms.values()))
        if "" in self.forms:
            raise UsageError(f"method {self.name} has one form; form is for methods with several, such as clrp1.")
        if name not in self.forms:
            raise UnknownName(f"form of {self.name}", name, self.forms)
        return self.forms[name]


@dataclass(frozen=True)
class Looped(Method):
    """A numpy function over `Run`.

    base: the one-pass recipe it looks through, "" for a forward-only method. of_trees: it reads a tree ensemble, and
    takes all rows of a call at once. background: whether it takes rows of data, or cannot do without; one that does so
    only with an option such as baseline=background says none. layer: what it does with inner tensors. "": it moves what
    is attributed, inputs or inner tensors. "followed": it moves the inputs and answers for what is attributed. "read"
    and "moved": it answers with one number for each position of a feature map, the last one unless told otherwise, and
    moves the inputs, or the map itself. of_tables: it is for tables, (samples, columns), and refuses other inputs.
    references: its base compares, and with what is told at each look. switches: its points hold nothing but elements
    of the input and of what stands in their place, so that whole numbers can be among them: tokens. shares: whether its
    answer has one unit, that of the score; not where it is in the units of the columns.
    """

    function: Callable[..., Any] = None  # type: ignore[assignment]
    base: str = ""
    of_trees: bool = False
    background: Need = "none"
    layer: Layer = ""
    of_tables: bool = False
    references: bool = False
    switches: bool = False
    shares: bool = True

    @property
    def sums(self) -> bool:
        """See `Method`."""
        return super().sums and self.shares

    @property
    def maps(self) -> bool:
        """Whether it answers with one number for each position of a feature map."""
        return self.layer in ("read", "moved")

    @property
    def family(self) -> Family:  # type: ignore[override]
        """Looped where it runs a one-pass graph, forward-only where it runs the model alone."""
        return "looped" if self.base else "forward-only"

    @cached_property
    def options(self) -> Mapping[str, Option]:
        """The keyword arguments of its function."""
        return declared(self.function)


METHODS: Registry[Method] = Registry("method")


def of_family(*families: Family) -> list[str]:
    """Names of the methods of some families, in order of registration."""
    return [name for name, entry in METHODS.items() if entry.family in families]


def method(
    name: str, *, cite: str, base: str = "gradient", channels: Channels = "sum", signed: bool = True,
    of_trees: bool = False, background: Need = "none", layer: Layer = "", of_tables: bool = False,
    references: bool = False, switches: bool = False, shares: bool = True,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # fmt: skip
    """Register a looped method: `function(run, x, seed, *, option=default, …) -> relevance`, see `methods.run`.

    One that draws samples returns an `Estimate`: the relevance with its standard error.

    base: name of the recipe it runs unless told otherwise; "": the model's forward pass only. of_trees: it gets many
    rows at once and a run with `trees` (`methods.tree_shap.TreeRun`). background: whether it reads `run.background`
    without an option that says so. layer, of_tables, references, switches, shares: see `Looped`; a method of a map has
    no base, or `layer_gradient`. Its first docstring line says what it is, a line `option: …` what an option means.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        doc = (function.__doc__ or "").strip().split("\n")[0]
        looped = Looped(
            name, doc, cite, channels, signed, function=function, base=base, of_trees=of_trees, background=background,
            layer=layer, of_tables=of_tables, references=references, switches=switches, shares=shares,
        )  # fmt: skip
        METHODS.add(name, looped)
        return function

    return register


def one_pass(name: str, why: str) -> OnePass:
    """A one-pass method by name. Raises UsageError for one of another family; why: what it is wanted for."""
    found = METHODS[name]
    if not isinstance(found, OnePass):
        raise UsageError(f"{why}, and {name} is {found.family}.")
    return found
