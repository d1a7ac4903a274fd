"""A template of this folder → one HTML page."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The whole page; every value is escaped.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not given.
    """
    environment = Environment(
        loader=PackageLoader(__package__, ""), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(**values)
