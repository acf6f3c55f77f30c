"""The auditor's statement as a PDF of A4 sheets, drawn by fpdf2 from the same value as the page."""

from __future__ import annotations

import os
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradtf_fl.errors import ConfigError
from gradtf_fl.reports.statement import AuditStatement, Fact, Grid, Part
from gradtf_fl.reports.statement_html import TONES

MARGIN, TOP, LINE, SMALL = 14.0, 11.0, 3.6, 3.2
"""Millimetres: the sheet's margins, and the height of a line of text and of small text."""
TEXT, FINE, CODE = 7.6, 7.0, 5.6
"""Points; 128 hexadecimal digits fit on one line."""
NAMES = 26.0
"""Millimetres of the column of names."""
INK, SOFT, RULE = (28, 36, 48), (91, 102, 117), (200, 206, 214)
COLOURS = {"good": (26, 127, 55), "bad": (180, 35, 31), "": INK}
FONTS = {("sans", ""): "DejaVuSans", ("sans", "B"): "DejaVuSans-Bold", ("mono", ""): "DejaVuSansMono"}
"""Bundled with matplotlib, by family and style."""
CELL = 1.2
"""Millimetres between columns."""


def check_pdf() -> None:
    """ConfigError where the library that draws the PDF is not installed."""
    if find_spec("fpdf") is None:
        raise ConfigError("the PDF needs fpdf2: pip install 'gradtf-fl[pdf]', or choose --format html")


def to_pdf(statement: AuditStatement) -> bytes:
    """The statement as a PDF; equal statements give equal bytes."""
    sheet = _Sheet(statement)
    sheet.heading(statement)
    for part in statement.parts:
        sheet.part(part)
    sheet.footer(statement.source)
    return bytes(sheet.pdf.output())


class _Sheet:
    """Draws from the top to the bottom of as many sheets as it takes."""

    def __init__(self, statement: AuditStatement) -> None:
        self.pdf = _new_pdf()
        self.pdf.set_title(self._fit(f"Privacy statement: {statement.heading}"))
        self.pdf.set_creation_date(datetime.fromisoformat(statement.made))
        self.pdf.set_lang("en")
        self.pdf.add_page()

    def heading(self, statement: AuditStatement) -> None:
        self._write("Privacy statement", 11, colour=SOFT, line=5)
        self._write(statement.heading, 13, "B", line=6)
        colour = COLOURS["good" if statement.compliant else "bad"]
        top = self.pdf.get_y() + 1.5
        self.pdf.set_xy(MARGIN + 4, top + 1)
        self._write(statement.verdict, 10, "B", colour=colour, line=5, indent=4)
        for reason in statement.reasons:
            self._write(f"• {reason}", TEXT, indent=4)
        if statement.caution:
            self._write(statement.caution, FINE, colour=SOFT, line=SMALL, indent=4)
        if self.pdf.page == 1:
            with self.pdf.local_context(fill_color=colour):
                self.pdf.rect(MARGIN, top, 1.2, self.pdf.get_y() + 0.5 - top, style="F")
        self.pdf.ln(1)

    def part(self, part: Part) -> None:
        if self.pdf.will_page_break(12):
            self.pdf.add_page()
        self.pdf.set_draw_color(*RULE)
        self.pdf.line(MARGIN, self.pdf.get_y() + 0.8, self.pdf.w - MARGIN, self.pdf.get_y() + 0.8)
        self.pdf.ln(1.4)
        self._write(part.title, 9, "B", line=4.6)
        if part.text:
            self._write(part.text, FINE, colour=SOFT, line=SMALL)
        for fact in part.facts:
            self._fact(fact)
        if part.grid:
            self._grid(part.grid)
        for point in part.points:
            self._write(f"•  {point}", FINE, line=SMALL)
        if part.blanks:
            self._blanks(part.blanks)

    def footer(self, text: str) -> None:
        self.pdf.ln(1.5)
        self._write(text, 6.5, colour=SOFT, line=SMALL)

    def _fact(self, fact: Fact) -> None:
        top = self.pdf.get_y()
        if self.pdf.will_page_break(2 * LINE):
            self.pdf.add_page()
            top = self.pdf.get_y()
        self._write(fact.name, TEXT, colour=SOFT, width=NAMES)
        below = self.pdf.get_y()
        self.pdf.set_y(top)
        size, family = (CODE, "mono") if fact.code else (TEXT, "sans")
        self._write(fact.value, size, indent=NAMES, family=family)
        self.pdf.set_y(max(below, self.pdf.get_y()))

    def _grid(self, grid: Grid) -> None:
        """Columns as wide as their longest text wants, the widest ones giving way."""
        from fpdf.enums import TableBordersLayout
        from fpdf.fonts import FontFace

        rows = [[self._fit(cell) for cell in row] for row in (grid.headings, *grid.rows)]
        self._font(FINE, "B")  # the widest form of any cell
        widths = _shares([max(map(self.pdf.get_string_width, column)) + 2.5 for column in zip(*rows, strict=True)])
        self._font(FINE)
        self.pdf.set_text_color(*INK)
        self.pdf.set_draw_color(*RULE)
        self.pdf.set_line_width(0.1)
        with self.pdf.table(
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
            col_widths=widths,
            text_align="LEFT",
            line_height=SMALL,
            padding=(0.25, CELL, 0.25, 0),
            headings_style=FontFace(emphasis="BOLD", color=SOFT),
            first_row_as_headings=True,
        ) as table:
            for row in rows:
                line = table.row()
                for cell in row:
                    tone = TONES.get(cell, "")
                    line.cell(cell, style=FontFace(emphasis="BOLD", color=COLOURS[tone]) if tone else None)
        self.pdf.ln(0.6)

    def _blanks(self, blanks: tuple[str, ...]) -> None:
        if self.pdf.will_page_break(16):
            self.pdf.add_page()
        self.pdf.ln(9)
        gap = 8.0
        width = (self.pdf.epw - gap * (len(blanks) - 1)) / len(blanks)
        top = self.pdf.get_y()
        self.pdf.set_draw_color(*INK)
        for n, blank in enumerate(blanks):
            left = MARGIN + n * (width + gap)
            self.pdf.line(left, top, left + width, top)
            self.pdf.set_y(top + 0.5)
            self._write(blank, FINE, colour=SOFT, indent=left - MARGIN, width=width)

    def _write(
        self,
        text: str,
        size: float,
        style: str = "",
        *,
        colour: tuple[int, int, int] = INK,
        line: float = LINE,
        indent: float = 0.0,
        width: float = 0.0,
        family: str = "sans",
    ) -> None:
        """A paragraph; the next one begins below it."""
        self._font(size, style, family)
        self.pdf.set_text_color(*colour)
        self.pdf.set_x(MARGIN + indent)
        self.pdf.multi_cell(width, line, self._fit(text), align="L", wrapmode="WORD", new_x="LMARGIN", new_y="NEXT")

    def _font(self, size: float, style: str = "", family: str = "sans") -> None:
        self.pdf.set_font(family, style, size)

    def _fit(self, text: str) -> str:
        """``text``, with characters that the font lacks spelled out: none is lost, and none is an empty box."""
        known = self.pdf.fonts["sans"].cmap
        return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


def _new_pdf() -> Any:
    """An FPDF with the sheet's size, margins and fonts; Any, as the package is an extra."""
    from fpdf import FPDF

    pdf = FPDF(format="A4")
    pdf.set_margins(MARGIN, TOP)
    pdf.set_auto_page_break(True, 10)
    pdf.c_margin = 0
    for (family, style), name in FONTS.items():
        pdf.add_font(family, style, _font_file(name))
    return pdf


def _font_file(name: str) -> Path:
    spec = find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the PDF needs the fonts of matplotlib: reinstall gradtf-fl")
    return Path(os.path.join(spec.submodule_search_locations[0], "mpl-data", "fonts", "ttf", f"{name}.ttf"))


def _shares(wanted: list[float]) -> tuple[float, ...]:
    """Widths for columns that want ``wanted`` millimetres, of a sheet's width; the widest ones give way.

    A narrow column gets what it wants, and the wide ones share what is left.
    """
    left, widths = 210 - 2 * MARGIN, dict.fromkeys(range(len(wanted)), 0.0)
    for rest, column in enumerate(sorted(widths, key=lambda column: wanted[column])):
        widths[column] = min(wanted[column], left / (len(wanted) - rest))
        left -= widths[column]
    widths[len(wanted) - 1] += left
    return tuple(widths.values())
