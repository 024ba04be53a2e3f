"""What our HTML reports are built of: one file that fetches nothing, in light and dark, from 320 pixels of width on.

Texts are escaped here and nowhere else: what a caller passes as a title, a cell or a note is text, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

_PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Group:
    """What belongs under one heading, `note` saying how to read it; headings in its content are of level 3."""

    title: str
    note: str
    content: Sequence[str]

    @property
    def place(self) -> str:
        """What a link in the page names it by."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower())

    def __str__(self) -> str:
        note = f'<p class="soft">{escape(self.note)}</p>' if self.note else ""
        return f'<div class="group" id="{self.place}"><h2>{escape(self.title)}</h2>{note}{"".join(self.content)}</div>'


def document(name: str, status: str, figures: Sequence[tuple[str, str]], content: Iterable[str | Group]) -> str:
    """Return a page under the heading `name`: what one looks for first as (value, name), and then the parts made below."""
    headlines = "".join(f"<li><b>{escape(value)}</b><span>{escape(of)}</span></li>" for value, of in figures)
    parts = list(content)
    links = [f'<a href="#{part.place}">{escape(part.title)}</a>' for part in parts if isinstance(part, Group)]
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{name} · dexml"),
        name=escape(name),
        status=escape(status),
        figures=f'<ul class="figures">{headlines}</ul>' if figures else "",
        contents=f'<nav aria-label="Contents">{"".join(links)}</nav>' if links else "",
        content="".join(map(str, parts)),
    )


def charts(cards: Iterable[str]) -> str:
    """Return cards side by side, as many as there is room for."""
    return f'<div class="charts">{"".join(cards)}</div>'


def card(title: str, chart: str, *, level: int = 2, table: str | None = None) -> str:
    """Return a card with a chart and a link to the file `table` beside the page that has its numbers; "" without a chart."""
    if not chart:
        return ""
    return f'<div class="chart"><h{level}>{escape(title)}</h{level}>{chart}{"" if table is None else link(table)}</div>'


def link(file: str) -> str:
    """Return a link to a file beside the page."""
    return f'<a class="table" href="{escape(file)}" download>{escape(file)}</a>'


def facts(title: str, values: Mapping[str, Any], *, level: int = 2, folded: bool = False) -> str:
    """Return a section with a table of names and values; empty lists are left out."""
    shown = {key: value for key, value in values.items() if value != []}
    rows = (
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_worded(value))}</td></tr>' for key, value in shown.items()
    )
    table = f'<table class="facts">{_caption(title)}{"".join(rows)}</table>'
    return section(title, table, level=level, folded=folded)


def numbers(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    level: int = 2,
    folded: bool = False,
    file: str | None = None,
) -> str:
    """Return a section with a table that scrolls in its box where it is too wide; each row's first cell is its heading."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    table = f'<table class="numbers">{_caption(title)}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    box = f'<div class="wide" role="region" aria-label="{escape(title)}" tabindex="0">{table}</div>'
    return section(title, box + ("" if file is None else link(file)), level=level, folded=folded)


def section(title: str, content: str, *, level: int = 2, folded: bool = False) -> str:
    """Return a card; a folded one opens with a click and needs no script."""
    heading = f"<h{level}>{escape(title)}</h{level}>"
    if folded:
        return f"<section><details><summary>{heading}</summary>{content}</details></section>"
    return f"<section>{heading}{content}</section>"


def columns(sections: Iterable[str]) -> str:
    """Return sections side by side, as many as there is room for."""
    return f'<div class="columns">{"".join(sections)}</div>'


def _caption(title: str) -> str:
    return f'<caption class="unseen">{escape(title)}</caption>'  # the heading above says it to the eye


def _worded(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
