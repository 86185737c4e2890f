"""What all commands share: an option that takes one value takes it once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import click
from click.core import ParameterSource

from onnxplain.errors import UsageError


class Command(click.Command):
    """A command that refuses an option given twice: click itself would take the last and forget the first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does it, after a look at what is repeated."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        counts = Counter(id(parameter) for parameter in order)
        for parameter in order:
            if not isinstance(parameter, click.Option) or parameter.multiple or parameter.count:
                continue
            if counts[id(parameter)] > 1:
                times = counts[id(parameter)]
                raise UsageError(f"{max(parameter.opts, key=len)} is given {times} times and takes one value.")
        return super().parse_args(ctx, args)


def refuse_idle(names: Iterable[str], reason: str, context: click.Context | None = None) -> None:
    """Raise UsageError for the first of these parameters that the user gave: `--option: reason`.

    An option that cannot act is a misunderstanding, and silence would let it stand. Environment variables are another
    matter: they describe a machine, not one call.
    """
    context = context or click.get_current_context()
    options = {str(p.name): max(p.opts, key=len) for p in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{options[name]}: {reason}")
