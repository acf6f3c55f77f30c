"""Pages and their parts as HTML. Every text goes through `shown` and is escaped, whatever template prints it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradtf_fl.dashboard.pages import Page
from gradtf_fl.reports import audit_environment, duration
from gradtf_fl.shown import shown
from gradtf_fl.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Part:
    """One part of a page. ``digest`` differs where the HTML does."""

    id: str
    html: str
    digest: str


@dataclass(frozen=True)
class Rendered:
    """A page's parts, and what a screen reader is told."""

    parts: tuple[Part, ...]
    spoken: str


class Renderer:
    """Renders the pages of one dashboard."""

    def __init__(self, pages: Sequence[Page]) -> None:
        self.pages = tuple(pages)
        self._environment = _environment()

    def parts(self, page: Page) -> Rendered:
        """The parts as they are now."""
        context = page.context()
        parts = []
        for name in page.parts:
            html = self._environment.get_template(f"{page.name}/{name}.html").render(context)
            parts.append(Part(f"{page.name}-{name}", html, hashlib.sha256(html.encode()).hexdigest()[:16]))
        return Rendered(tuple(parts), shown(context["spoken"]))

    def page(self, page: Page) -> str:
        """The whole page."""
        return self.render("page.html", page.name, page=page, rendered=self.parts(page))

    def render(self, template: str, here: str, page: Page | None = None, **context: Any) -> str:
        """HTML of a whole page.

        Args:
            here: name of the page that the navigation marks; "" for none.
            page: the page that updates itself; None for one that does not.
        """
        values: Mapping[str, Any] = {"pages": self.pages, "here": here, "page": page, "version": __version__, **context}
        return self._environment.get_template(template).render(values)


def _environment() -> Environment:
    from jinja2 import PackageLoader

    environment = audit_environment(PackageLoader("gradtf_fl", "dashboard/templates"))
    environment.finalize = _finalize
    environment.filters |= {"thousands": lambda count: f"{count:,}", "figure": figure, "duration": duration}
    return environment


def _finalize(value: object) -> object:
    """One line of printable characters of every text that is not HTML already."""
    return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def figure(value: float | None, digits: int = 3) -> str:
    """A score for people; a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"
