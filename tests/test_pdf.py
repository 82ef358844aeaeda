"""The printable edition: the whole book as one document whose links hold, and a few pages of it as a PDF."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "book"))

import pdf  # noqa: E402


@pytest.fixture(scope="module")
def book(site):
    return BeautifulSoup(pdf.document(pdf.PAGES), "html.parser")


def test_every_page_is_in_it_once_and_in_the_contents(book):
    chapters = [chapter["id"] for chapter in book.select("div.chapter")]
    assert chapters == [pdf.name(page) for page in pdf.PAGES]
    assert [entry["href"] for entry in book.select("nav a.page")] == [f"#{chapter}" for chapter in chapters]


def test_links_lead_to_places_in_it(book):
    ids = [tag["id"] for tag in book.select("[id]")]
    assert len(ids) == len(set(ids))
    links = {link["href"] for link in book.select("a[href]")}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(link.startswith(("#", "https://", "http://")) for link in links)


def test_nothing_is_left_folded_or_moving(book):
    assert not book.select("details, .dropdown, button, a.headerlink, .chapter script")
    assert len(book.select("div.solution")) > 70
    flipbooks = book.select("div.flipbook")
    assert flipbooks
    for flipbook in flipbooks:
        (picture,) = flipbook.select("img")
        assert picture["src"].startswith("data:image/png") and picture["alt"]
        assert re.search(r": .+\. One of \d+ frames, ", flipbook.p.text)


def test_its_style_sheet_keeps_figures_whole_and_code_inside_the_page(book):
    style = book.style.string
    assert re.search(r"@page \{[^}]*size: A4;", style)
    assert re.search(r"\npre \{[^}]*white-space: pre-wrap;", style)
    assert re.search(r"\n\.cell_output img, \.flipbook \{[^}]*break-inside: avoid;", style)
    for font in re.findall(r'url\("file://(\S+\.ttf)"\)', style):
        assert Path(font).exists()


def titles(outline):
    """Of all entries of an outline; those below an entry are a list behind it."""
    return {title for entry in outline for title in (titles(entry) if isinstance(entry, list) else {entry.title})}


@pytest.mark.skipif(
    not (find_spec("playwright") and any(map(pdf.shutil.which, pdf.BROWSERS))),
    reason="no Chromium or Chrome on the PATH, or no playwright, so nothing can be printed",
)
def test_two_pages_are_printed_with_contents_outline_and_author(site, tmp_path, monkeypatch, capsys):
    out, pages = tmp_path / "two.pdf", ["cheat_sheet", "notation"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pdf.py", "--pages", *pages, "--out", "two.pdf"])
    pdf.main()
    said = capsys.readouterr()
    count = int(re.search(r": (\d+) pages, ", said.out)[1])
    assert 6 <= count <= 14 and said.err == ""
    written = PdfReader(out)
    assert (len(written.pages), written.metadata.author) == (count, pdf.CONFIG["author"])
    assert written.page_mode == "/UseOutlines"
    assert {"Contents", "Reference", "Cheat sheet", "Notation", "The forward process"} <= titles(written.outline)
    where = pdf.destinations(out.read_bytes())
    targets = [entry["href"][1:] for entry in BeautifulSoup(pdf.document(pages), "html.parser").select("nav a")]
    numbers = [where[target] for target in targets]
    assert numbers == sorted(numbers) and numbers[0] == 3 and numbers[-1] == count
    assert list(tmp_path.iterdir()) == [out]


def test_without_a_browser_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pdf.py", "--build"])
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="Chromium or Chrome.*Install one"):
        pdf.main()


def test_a_page_that_is_not_in_the_book_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pdf.py", "--pages", "notebooks/99_none"])
    with pytest.raises(SystemExit, match="notebooks/99_none: not in _toc.yml"):
        pdf.main()
