"""Pages of one HTML file each, in one style, that ask nothing of the network."""

from typing import Any

import jinja2

_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("smt_ray.report", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def render(kind: str, **values: Any) -> str:
    """Return a page of the template `<kind>.html.j2`, which must be given a `title`."""
    return _PAGES.get_template(f"{kind}.html.j2").render(**values)
