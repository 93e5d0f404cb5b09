"""How objects display themselves: a few lines in a terminal, a small table in a notebook."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

Facts = Mapping[str, Any]


class Described:
    """Mixin: `__repr__` and a notebook's rich display, from `facts()`. It has to come before nn.Module in the bases."""

    def facts(self) -> dict[str, Any]:
        """The facts to show: name and value, in a few words each."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return as_text(type(self).__name__, self.facts())

    def _repr_html_(self) -> str:
        return as_html(type(self).__name__, self.facts())


def as_text(title: str, facts: Facts) -> str:
    """A line for each fact under the title."""
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def as_html(title: str, facts: Facts) -> str:
    """The facts as an HTML table under the title."""
    style = "text-align:left;padding:1px 12px 1px 0"
    rows = "".join(
        f'<tr><th style="{style};font-weight:normal;opacity:.7">{escape(str(name))}</th>'
        f'<td style="{style}">{escape(str(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f"<b>{escape(title)}</b><table>{rows}</table>"


def millions(parameters: Iterable[Any]) -> str:
    """The number of parameters, as '1.63 M parameters'."""
    return f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters"
