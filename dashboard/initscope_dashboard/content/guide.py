"""The Markdown pages of ``guide/``: titles, sections, and links between pages as addresses of the screen."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[1] / "guide"
LANGUAGES = {"en": "English", "zh": "中文"}
ORDER = ("recording", "check", "outcomes", "initializations", "theory", "query", "run-folder", "command-line")
"""Pages in the order in which one needs them; others follow by name."""


class Section(NamedTuple):
    """A part of a page under a heading of the second level; the first has the page's title."""

    title: str
    text: str


class Page(NamedTuple):
    """One page. ``text`` has no links to files: they are addresses of the Guide page."""

    name: str
    title: str
    text: str

    @property
    def sections(self) -> list[Section]:
        first, *rest = re.split(r"^## ", self.text, flags=re.MULTILINE)
        return [
            Section(self.title, first),
            *(Section(*part.split("\n", 1)) if "\n" in part else Section(part, "") for part in rest),
        ]


@cache
def pages(language: str) -> dict[str, Page]:
    """{name: page} of one language; a page that is not translated comes in English."""
    files = {path.stem: path for folder in ("en", language) for path in (FOLDER / folder).glob("*.md")}
    names = sorted(files, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    return {name: _page(name, files[name].read_text(encoding="utf-8")) for name in names}


def _page(name: str, text: str) -> Page:
    head, _, body = text.partition("\n")
    return Page(name, head.removeprefix("# ").strip(), linked(body))


def linked(text: str) -> str:
    """Links to other pages of the guide as addresses: ``](outcomes.md#verdict)`` becomes
    ``](?page=outcomes)``.
    """
    return re.sub(r"\]\((?:\./)?([\w-]+)\.md(?:#[\w-]*)?\)", r"](?page=\1)", text)


def links(page: Page) -> list[str]:
    """Names of the pages that a page links to, each once."""
    return list(dict.fromkeys(re.findall(r"\]\(\?page=([\w-]+)\)", page.text)))


def search(words: str, language: str) -> list[tuple[Page, Section]]:
    """Sections that hold every word, those with all words in their title first."""
    wanted = words.lower().split()
    found = [
        (page, section)
        for page in pages(language).values()
        for section in page.sections
        if all(word in f"{page.title} {section.title} {section.text}".lower() for word in wanted)
    ]
    return sorted(found, key=lambda pair: not all(word in pair[1].title.lower() for word in wanted))


def excerpt(section: Section, words: str, around: int = 110) -> str:
    """The line of a section's text about the first of the words that it holds, as plain text."""
    plain = " ".join(re.sub(r"[`*|#]|\]\([^)]*\)|\[", " ", section.text).split())
    at = next((place for word in words.lower().split() if (place := plain.lower().find(word)) >= 0), 0)
    low, high = max(0, at - around), at + around
    return f"{'… ' if low else ''}{plain[low:high]}{' …' if high < len(plain) else ''}"
