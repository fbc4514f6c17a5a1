"""A small HTML template engine, and the elements that the pages share.

Text is escaped wherever it is inserted, unless it is `Html` already.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from html import escape

from bandtok_jax.evaluation.report.stylesheet import STYLESHEET


class Html(str):
    """HTML, which is inserted without escaping."""


def html(template: str, **values: str | float | Iterable[Html]) -> Html:
    """Fills the `{name}` fields of a template: text and numbers are escaped, Html and sequences of Html inserted."""
    return Html(template.format(**{name: _filled(value) for name, value in values.items()}))


def _filled(value: str | float | Iterable[Html]) -> str:
    if isinstance(value, Html):
        return value
    if isinstance(value, str):
        return escape(value)
    return escape(str(value)) if isinstance(value, (int, float)) else "".join(map(_filled, value))


def page(title: str, *sections: Html) -> Html:
    """Returns a whole page that loads nothing from elsewhere."""
    return html(_PAGE, title=title, stylesheet=Html(STYLESHEET), body=Html("\n".join(sections)))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{stylesheet}</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      content: text or Html.
      classes: class names of the stylesheet.
      title: text that appears under the mouse.
      columns: that it spans.
    """

    content: str
    classes: str = ""
    title: str = ""
    columns: int = 1


def table(head: Sequence[str | Cell], rows: Iterable[Sequence[str | Cell]]) -> Html:
    """Returns a table that scrolls by itself where it is wide. The first cell of a row names it; others are numbers.

    Args:
      head: titles of the columns.
      rows: as many cells as there are columns.
    """
    first, *others = head
    titles = [first, *(Cell(title, "number") if isinstance(title, str) else title for title in others)]
    return html(
        "<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>",
        head=[_cell("th", title) for title in titles],
        rows=[html("<tr>{cells}</tr>", cells=_row(row)) for row in rows],
    )


def _row(cells: Sequence[str | Cell]) -> list[Html]:
    return [_cell("td" if number else "th", cell) for number, cell in enumerate(cells)]


def _cell(tag: str, cell: str | Cell) -> Html:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    attributes = {"class": cell.classes, "title": cell.title, "colspan": cell.columns if cell.columns > 1 else ""}
    written = [html(' {name}="{value}"', name=name, value=value) for name, value in attributes.items() if value]
    return html("<{tag}{attributes}>{content}</{tag}>", tag=tag, attributes=written, content=cell.content)


def figure(source: str, description: str, *, caption: str = "", link: str = "", broad: bool = False) -> Html:
    """Returns a figure.

    Args:
      source: URL of the image.
      description: text in place of the image.
      caption: below the image, if any.
      link: URL that the image opens, if any.
      broad: it may be as wide as the page.
    """
    image = html('<img src="{source}" alt="{description}">', source=source, description=description)
    image = html('<a href="{link}">{image}</a>', link=link, image=image) if link else image
    text = html("<figcaption>{caption}</figcaption>", caption=caption) if caption else Html()
    classes = Html(" class=broad") if broad else Html()
    return html("<figure{classes}>{image}{text}</figure>", classes=classes, image=image, text=text)


def figures(items: Iterable[Html]) -> Html:
    """Returns figures side by side where the page is wide enough."""
    return html("<div class=figures>{items}</div>", items=items)


def audio_element(source: str, preload: bool = False) -> Html:
    """Returns controls that play the audio at a URL, which is loaded with the page or when it is played."""
    attribute = Html() if preload else Html(" preload=none")
    return html('<audio controls{attribute} src="{source}"></audio>', attribute=attribute, source=source)


def heading(text: str, level: int = 2) -> Html:
    """Returns a heading."""
    return html("<h{level}>{text}</h{level}>", level=level, text=text)


def paragraph(text: str) -> Html:
    """Returns a paragraph of text or Html."""
    return html("<p>{text}</p>", text=text)


def summary(text: str) -> Html:
    """Returns the line below the title of a page."""
    return html("<p class=summary>{text}</p>", text=text)


def details(title: str, content: Html) -> Html:
    """Returns content that is hidden below its title at first."""
    return html("<details><summary>{title}</summary>{content}</details>", title=title, content=content)


def number(value: float | None) -> Html:
    """Returns a number with three significant digits or more, or a dash for None."""
    if value is None:
        return Html("&ndash;")
    size = abs(value)
    if size and size < 1e-3:
        return Html(f"{value:.1e}")
    digits = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return Html(f"{value:.{digits}f}".replace("-", "&minus;"))
