"""A page from its template: one environment for all pages, the style sheet inside of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_STYLE = "report.css"

Filters = Mapping[str, Callable[..., object]]


def render_page(template: str, *, filters: Filters, **values: object) -> str:
    """The page of ``template`` as a string; what comes from files is escaped, a name that is not given is an error."""
    environment = page_environment()
    environment.filters.update(filters)
    # The style sheet is a file of this package, not of the user.
    style = Markup(environment.get_template(_STYLE).render())
    return environment.get_template(template).render(style=style, **values)


def page_environment() -> Environment:
    """Jinja over the templates of this package."""
    return Environment(
        loader=PackageLoader("nemotrt.bench", "templates"),
        autoescape=lambda name: name != _STYLE,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
