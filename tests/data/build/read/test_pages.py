"""Web pages and PDF files give their text; those that cannot be read count as broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from regraft.data.build.read import lines, pages
from regraft.data.build.read.parts import list_source
from regraft.data.build.read.read import read_part
from regraft.data.build.read.report import ReadReport
from regraft.data.build.schema import Source
from regraft.errors import InputError

BODY = "The caf\u00e9 opens at seven, and its first guests are there at six already. " * 4
PAGE = """<html><head>{head}<title>A page</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>
<main><h1>Coffee</h1><div>
		In  <b>two</b>
		lines.
</div><p>{body}</p><pre>def brew(cup):
    return cup + 1
</pre><p>{body}</p></main><footer>All rights reserved. Imprint.</footer></body></html>"""


def _read(**keys):
    source = Source(name="s", licence="CC0-1.0", **keys)
    report = ReadReport()
    found = [
        document
        for part in list_source(source).parts
        for document in read_part(source, part, report)
    ]
    return found, report


def _pdf(*texts: str) -> bytes:
    """A PDF file with a page for each text, whose lines are written one below another."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(texts)))
    bodies = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(texts)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(texts):
        written = "".join(f"({line}) Tj T* " for line in text.split("\n")) if text else ""
        content = f"BT /F1 12 Tf 14 TL 72 720 Td {written}ET"
        bodies.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        bodies.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    end = f"xref\n0 {len(bodies) + 1}\n0000000000 65535 f \n{table}trailer\n"
    end += f"<< /Size {len(bodies) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
    return data + end.encode()


def test_a_page_is_its_text_without_menus(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.HTM").write_text(PAGE.format(head='<meta charset="utf-8">', body=BODY))
    (tmp_path / "b.html").write_text("<html><body><nav></nav></body></html>")
    (tmp_path / "c.html").write_bytes(bytes(range(256)))
    (tmp_path / "d.txt").write_text("no page")
    found, report = _read(html=str(tmp_path), encodings=["utf-8", "cp1252", "latin-1"])
    ((document,)) = found
    assert document.id == "deep/a.HTM"
    assert document.text.split("\n") == [
        "Coffee", "In two lines.", BODY.strip(),
        "def brew(cup):", "    return cup + 1", BODY.strip(),
    ]  # fmt: skip
    assert (report.records, report.empty, report.broken) == (3, 1, 1)
    assert report.examples == ["c.html: it is not HTML"]
    assert sorted(report.hashes) == ["b.html", "c.html", "deep/a.HTM"]


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ('<meta charset="iso-8859-1">', "cp1252"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
        ('<meta charset="utf-16">', "utf-8"),  # as browsers read it
        ('<meta charset="utf-8">', "latin-1"),  # it states another one than it is in
        ('<meta charset="no-such">', "utf-8"),
        ("", "utf-16"),
    ],
)
def test_the_encoding_of_a_page_is_stated_or_tried(tmp_path, head, encoding) -> None:
    pytest.importorskip("trafilatura")
    body = BODY.replace("\u00e9", "\u0434\u0430" if encoding == "koi8-r" else "\u00e9")
    (tmp_path / "a.html").write_bytes(PAGE.format(head=head, body=body).encode(encoding))
    ((document,), _) = _read(html=str(tmp_path / "*.html"), encodings=["utf-8", "latin-1"])
    assert body.strip() in document.text


def test_pages_too_large_or_in_no_encoding_are_broken(tmp_path, monkeypatch) -> None:
    pytest.importorskip("trafilatura")
    monkeypatch.setattr(pages, "_LARGEST", 5000)
    (tmp_path / "a.html").write_text("x" * 5001)
    (tmp_path / "b.html").write_bytes(PAGE.format(head="", body="\u00e9").encode("latin-1"))
    with pytest.raises(InputError, match="larger than 10 MB"):
        pages.page_text("x" * 5001)  # of a field
    found, report = _read(html=str(tmp_path))
    assert (found, report.broken, report.records) == ([], 2, 2)
    assert report.examples == [
        "a.html: it is larger than 10 MB", "b.html: it is not utf-8 text"
    ]  # fmt: skip


def test_the_longer_of_two_extractions_is_taken(monkeypatch) -> None:
    trafilatura = pytest.importorskip("trafilatura")
    texts = {False: "short\u00b6  ", True: None}

    def extract(tree, *, favor_recall, **_):
        return texts[favor_recall]

    monkeypatch.setattr(trafilatura, "extract", extract)
    assert pages.page_text(PAGE) == "short"
    texts[True] = "much longer"
    assert pages.page_text(PAGE) == "much longer"


def test_a_field_may_have_web_pages(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    html = PAGE.format(head='<meta charset="latin-1">', body=BODY)
    (tmp_path / "a.jsonl").write_text(json.dumps({"page": html}) + '\n{"page": "\\u0000"}\n')
    found, report = _read(jsonl=str(tmp_path), field="page", format="html")
    assert [one.text.split("\n")[::2][:2] for one in found] == [["Coffee", BODY.strip()]]
    assert report.records == 2


def test_a_pdf_is_the_text_of_its_pages(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("pypdfium2")
    whole = _pdf("First line of\nan exam-\nple.", "", "Second page")
    (tmp_path / "a.pdf").write_bytes(whole)
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\nnothing")
    (tmp_path / "c.pdf").write_bytes(_pdf(""))
    found, report = _read(pdf=str(tmp_path))
    assert [(one.id, one.text) for one in found] == [
        ("a.pdf", "First line of\nan example.\n\nSecond page\n\n")
    ]
    assert (report.records, report.empty, report.broken) == (3, 1, 1)
    assert report.examples[0].startswith("b.pdf: its text cannot be extracted (Pdfium")
    monkeypatch.setattr(lines, "_LONGEST", 30)
    assert [one.id for one in _read(pdf=str(tmp_path / "a.pdf"))[0]] == ["a.pdf", "a.pdf:1"]


@pytest.mark.parametrize("kind", ["html", "pdf"])
def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch, kind) -> None:
    (tmp_path / f"a.{kind}").write_text("x")
    name = pages.PACKAGES[kind]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=f"^{kind} needs {name}: pip install {name}\\.$"):
        _read(**{kind: str(tmp_path)})


def test_conversations_are_no_web_pages() -> None:
    with pytest.raises(ValueError, match="format: html is of texts"):
        Source(name="s", licence="CC0-1.0", jsonl="a", chat=True, format="html")
