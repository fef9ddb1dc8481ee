"""The report of a case as a file: HTML as it is, PDF by Qt."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import qt

from medmap.io.atomic import atomic_path, write_text

from ..mrml.case_report import CaseReport
from ..mrml.output_files import outputFile

PAGE_WIDTH = 700
"""Pixels of a page as Qt lays it out; printing scales the page to the paper."""
PAGE_MARGIN = 44
PDF_RESOLUTION = 300
"""Dots per inch of the paper: pictures keep their pixels."""
# Qt knows a small part of CSS. Sizes are in pixels: a point has another number of them on a Mac.
STYLE = """
body, p, li, td, th, h1, h2 { color:#1d2a33; font-family:sans-serif; }
p, li, td, th { font-size:12px; }
h1 { font-size:24px; margin-bottom:4px; }
h2 { font-size:17px; margin-top:16px; margin-bottom:4px; }
ul { margin-left:-22px; }
th { color:#66757f; text-align:right; }
td, th { padding:2px 9px; text-align:right; }
td.name, th.name { text-align:left; padding-left:0px; white-space:nowrap; }
td.plane { text-align:left; padding:0px 8px 0px 0px; }
.quiet { color:#66757f; }
td.notice { background-color:#fff4d6; text-align:left; padding:6px 12px; }
"""


def saveReport(report: CaseReport, path: str | Path) -> Path:
    """Write a report, as PDF if the name ends so, else as HTML. Returns the file.

    Raises:
        OutputError: the folder is missing or cannot be written.
        IOFailure: writing broke off; a file that was there is as it was.
    """
    path = outputFile(path, (".html", ".htm", ".pdf"))
    if path.suffix.lower() == ".pdf":
        # Qt reports no fault of the disk: the file is looked at before it replaces another.
        with atomic_path(path) as temporary:
            _savePdf(report, temporary)
    else:
        write_text(path, report.webPage())
    return path


def _savePdf(report: CaseReport, path: Path) -> None:
    device = _pdfDevice(str(path))
    height = PAGE_WIDTH * device.height() / device.width()
    blocks = _paginated(_blocks(report), height - 2 * PAGE_MARGIN, report.title)
    document = _document("".join(blocks))
    document.setDocumentMargin(PAGE_MARGIN)
    # With a page size of its own the document is scaled to the paper, whatever its resolution.
    document.setPageSize(qt.QSizeF(PAGE_WIDTH, height))
    # PythonQt of other versions names the method as C++ does.
    printTo = getattr(document, "print_", None) or document.print
    printTo(device)


def _pdfDevice(path: str) -> Any:
    """What paints a PDF: which class PythonQt offers depends on Slicer's version."""
    if hasattr(qt, "QPdfWriter"):
        device = qt.QPdfWriter(path)
    else:
        device = qt.QPrinter()
        device.setOutputFormat(qt.QPrinter.PdfFormat)
        device.setOutputFileName(path)
    device.setResolution(PDF_RESOLUTION)
    return device


def _document(body: str) -> Any:
    document = qt.QTextDocument()
    document.setHtml(f"<html><head><style>{STYLE}</style></head><body>{body}</body></html>")
    return document


def _blocks(report: CaseReport) -> list[str]:
    """HTML of what should not be torn apart: the head, every section, the foot."""
    lead = f"<h1>{escape(report.title)}</h1><p>{escape(report.lead)}</p>"
    # Qt paints padding around cells only, not around paragraphs.
    notice = f'<table><tr><td class="notice">{escape(report.notice)}</td></tr></table>'
    sections = [f"<h2>{escape(title)}</h2>{body}" for title, body in report.sections]
    return [lead + notice, *sections, f'<p class="quiet">{escape(report.foot)}</p>']


def _paginated(blocks: Sequence[str], height: float, title: str) -> list[str]:
    """The blocks, with a page break before each that the page has no room for.

    Qt breaks a page between any two lines, and knows no CSS to keep a table together.

    Args:
        blocks: HTML, from top to bottom.
        height: pixels of a page.
        title: stands with the page number on every page but the first: sheets get mixed up.
    """
    paginated: list[str] = []
    page = ""
    pages = 1
    for block in blocks:
        document = _document(page + block)
        document.setDocumentMargin(0)
        document.setTextWidth(PAGE_WIDTH - 2 * PAGE_MARGIN)
        if document.size.height() > height and page:
            pages += 1
            page = ""
            head = f"{escape(title)} \u00b7 {pages}"
            block = f'<p class="quiet" style="page-break-before:always">{head}</p>{block}'
        page += block
        paginated.append(block)
    return paginated
