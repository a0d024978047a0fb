"""What the pages share: plots as static SVG, and templates that escape everything else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from hfq.schema.errors import MissingDependencyError

from .keymap import BLOCK_MODULES

__all__ = ["block_number", "block_ticks", "forward_order", "plotting", "render", "require_report_extra", "to_svg"]

_TICKS: Final = 20


def require_report_extra() -> None:
    """Check that the packages which draw and render are installed.

    Raises:
        MissingDependencyError
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "the report needs optional packages", found=error, todo="install them: pip install 'hfq[report]'"
        ) from None


@contextlib.contextmanager
def plotting(salt: str) -> Iterator[None]:
    """Draw with the pages' settings. Identifiers inside the SVG derive from `salt`: same data, same page.

    Figures are drawn without pyplot, so that no backend is chosen: the caller's, and its settings, stay as they are.

    Raises:
        MissingDependencyError
    """
    require_report_extra()
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": salt, "font.size": 9, "svg.fonttype": "none"}):
        yield


def to_svg(figure: Any) -> str:
    """The markup of a figure, without what depends on time or version."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def render(template: str, figures: Iterable[Mapping[str, Any]], **values: Any) -> str:
    """A page of `hfq/convert/templates`; `figures` have `title`, `svg` and `note`."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hfq.convert", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # The only markup that is not escaped: drawn by matplotlib from numbers and schema-checked names.
    drawn = [{**figure, "svg": markupsafe.Markup(figure["svg"])} for figure in figures]
    return environment.get_template(template).render(figures=drawn, **values)


def block_number(name: str) -> tuple[str, int]:
    """Sort key of `blocks.7`: by stack, then number."""
    stack, _, index = name.partition(".")
    return stack, int(index) if index.isdigit() else -1


def forward_order(kind: str) -> tuple[int, str]:
    """Sort key of a linear's name in its block: order of the forward pass; those outside the blocks after them."""
    order = [module.original for module in BLOCK_MODULES]
    return (order.index(kind) if kind in order else len(order), kind)


def block_ticks(names: list[str], most: int = _TICKS) -> tuple[list[int], list[str]]:
    """Places and labels of at most about `most` ticks on an axis of blocks."""
    step = max(1, -(-len(names) // most))
    places = list(range(0, len(names), step))
    return places, [names[place].partition(".")[2] or names[place] for place in places]
