"""The text of web pages, by trafilatura, and of PDF files, by pypdfium2."""

from __future__ import annotations

import codecs
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from regraft.errors import InputError
from regraft.input_files import open_file, read_bytes

PACKAGES = {"html": "trafilatura", "pdf": "pypdfium2"}
_LARGEST = 10_000_000  # bytes of a page; trafilatura takes up to ten seconds for a MB
_HEAD = 2048  # bytes in which a page may state its encoding
_DECLARED = re.compile(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([A-Za-z0-9._:-]+)", re.IGNORECASE)
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
# Browsers read these names as windows-1252, because pages that state them are written in it.
_WINDOWS = ("ascii", "us-ascii", "iso-8859-1", "latin1")
_HEADER_LINK = "\u00b6"  # Sphinx puts it behind headings
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl",
              0xFB05: "st", 0xFB06: "st"}  # fmt: skip
_DIVISION = "\x02"  # PDFium's sign for the hyphen of a word that is divided between two lines
_SPACES = re.compile(r"[ \t\n\r\f]+")
_PREFORMATTED = frozenset({"pre", "textarea"})
_BLOCKS = _PREFORMATTED | {
    "address", "article", "aside", "blockquote", "body", "br", "caption", "dd", "details",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3",
    "h4", "h5", "h6", "header", "hr", "html", "legend", "li", "main", "nav", "ol", "p",
    "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
}  # fmt: skip


def check_package(kind: Literal["html", "pdf"]) -> None:
    """Raise InputError where the package that reads this kind is not installed."""
    try:
        if kind == "html":
            import trafilatura  # noqa: F401
        else:
            import pypdfium2  # noqa: F401
    except ImportError:
        name = PACKAGES[kind]
        raise InputError(f"{kind} needs {name}: pip install {name}.") from None


def read_page(path: Path, encodings: Sequence[str]) -> str:
    """The text of an HTML file; '' where it has none.

    Its encoding is the one that it states or, if it is in another one, the first of `encodings`
    that decodes it. Raises InputError where there is none, where it is no HTML, and for more than
    10 MB.
    """
    _check_size(path.stat().st_size)  # before it is read
    return page_text(_decode_page(read_bytes(path), encodings))


def page_text(html: str) -> str:
    """The text of a web page without its menus, headers and footers; '' where it has none.

    Raises InputError for what is no HTML, and for more than 10 MB.
    """
    import trafilatura

    _check_size(len(html))

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it reports every empty page
    if not html.strip():
        return ""
    try:
        tree = trafilatura.load_html(html)
        if tree is None:
            raise InputError("it is not HTML")
        _collapse_spaces(tree)
        # Either way may miss whole sections: the one lists and headings, the other paragraphs.
        ways = [
            trafilatura.extract(tree, fast=True, include_comments=False, favor_recall=recall) or ""
            for recall in (False, True)
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"its text cannot be extracted ({_reason(error)})") from error
    lines = max(ways, key=len).replace(_HEADER_LINK, "").split("\n")
    return "\n".join(line.rstrip() for line in lines)


def _check_size(size: int) -> None:
    if size > _LARGEST:
        raise InputError("it is larger than 10 MB")


def read_pdf(path: Path) -> Iterator[str]:
    """The text of each page of a PDF file, with an empty line behind it, divided words joined and
    ligatures as letters. Pages without text, such as scanned ones, are left out.

    Raises InputError for a file that is broken or encrypted.
    """
    import pypdfium2

    with open_file(path) as file:
        try:
            document = pypdfium2.PdfDocument(file)
            for page in document:
                text = page.get_textpage().get_text_bounded().replace(_DIVISION, "")
                lines = [line.strip() for line in text.translate(_LIGATURES).splitlines()]
                if any(lines):
                    yield "\n".join(lines).strip() + "\n\n"
                page.close()
            document.close()
        except pypdfium2.PdfiumError as error:
            raise InputError(f"its text cannot be extracted ({_reason(error)})") from error


def _collapse_spaces(element: Any) -> None:
    """Make one space of every run of white space, and none at the start of a block, as a browser
    does, but in preformatted text."""
    stack = [element]
    while stack:
        element = stack.pop()
        block = element.tag in _BLOCKS
        if element.tag not in _PREFORMATTED:
            element.text = _collapsed(element.text, block)
            stack.extend(element)
        element.tail = _collapsed(element.tail, block)


def _collapsed(text: str | None, block: bool) -> str | None:
    if not text:
        return text
    text = _SPACES.sub(" ", text)
    return text.removeprefix(" ") if block else text


def _decode_page(data: bytes, encodings: Sequence[str]) -> str:
    names = [name for mark, name in _MARKS if data.startswith(mark)]
    if match := _DECLARED.search(data[:_HEAD]):
        declared = match[1].decode("ascii").lower()
        if not declared.startswith(("utf-16", "utf-32")):  # no one can read the statement in these
            names.append("cp1252" if declared in _WINDOWS else declared)
    for name in [*names, *encodings]:
        try:
            return data.decode(name)
        except (LookupError, ValueError):  # not an encoding of text, or not its text
            continue
    raise InputError(f"it is not {' or '.join(encodings)} text")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}".rstrip(": ")
