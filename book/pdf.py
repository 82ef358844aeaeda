"""The printable edition: the built site as one PDF, printed by a Chromium or Chrome that asks no other host.

    make pdf                                          # builds the site, then prints it; some minutes
    python book/pdf.py                                # prints the site that is there
    python book/pdf.py --pages notation cheat_sheet   # some of its pages, to look at a change

The pages are put one behind the other, in the order of ``_toc.yml``, with solutions unfolded and each flipbook as
the frame it opens with. Links from page to page become links inside the document. It is printed twice: the first time
says on which page each heading is, and the second time has the numbers in its table of contents. The style sheet is
``book/pdf.css``; the letters are those that come with matplotlib, so that pages break alike on every machine.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tomllib
from html import escape
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import matplotlib
import yaml
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader, PdfWriter

ROOT = Path(__file__).parent.parent
SITE = ROOT / "_build" / "html"
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
PAGES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", MAC, "chrome", "msedge"]
COLUMN = 658  # width of the text in CSS pixels: A4 less the margins of pdf.css


def name(page: str, anchor: str = "") -> str:
    """What a page, or a place on it, is called in the one document, where every name must be different."""
    return re.sub(r"[^\w.-]", "-", page) + (f"--{anchor}" if anchor else "")


def article(page: str, pages: list[str]) -> Tag:
    """The text of a built page, made ready to stand among others on paper."""
    path = (SITE / page).with_suffix(".html")
    html = path.read_text("utf-8")
    html = re.sub(r'<span class="(?:n|nn|o|p|w|pre)">([^<]*)</span>', r"\1", html)  # black letters need no tag each
    soup = BeautifulSoup(html, "html.parser")
    text = soup.select_one("article.bd-article")
    for flipbook, view in flipbooks(soup):
        view.replace_with(flipbook)
    for tag in text.select(
        "a.headerlink, a:has(.viewcode-link), script, button, .toctree-wrapper, summary, img.toggler"
    ):
        tag.decompose()
    for tag in text.select("details"):
        tag.name = "div"
    for tag in text.select(".dropdown"):
        tag["class"].remove("dropdown")
    for tag in text.select("pre, table, div.cell:not(:has(img))"):  # what is not worth a page break
        lines = len(tag.select("tr")) or sum(part.get_text().count("\n") for part in (tag.select("pre") or [tag]))
        if lines <= 12:
            tag["class"] = [*tag.get("class", []), "short"]
    for tag in text.select("dl.glossary > dt"):  # a term stays with what it means
        if tag.find_previous_sibling(True) is None or tag.find_previous_sibling(True).name != "dt":
            group = [tag]
            while group[-1].name != "dd":
                group.append(group[-1].find_next_sibling(True))
            tag.insert_before(box := soup.new_tag("div"))
            box.extend(group)
    seen = set()
    for tag in text.select("[id]"):
        if tag["id"] in seen:  # each exercise of a page has an exercise-content
            del tag["id"]
        else:
            seen.add(tag["id"])
            tag["id"] = name(page, tag["id"])
    for tag in text.select("img[src]"):
        if not tag["src"].startswith("data:"):
            tag["src"] = (path.parent / tag["src"]).resolve().as_uri()
    for tag in text.select("a[href]"):
        link = urlsplit(tag["href"])
        if link.scheme:
            continue
        target = (path.parent / unquote(link.path)).resolve() if link.path else path
        there = target.with_suffix("").relative_to(SITE.resolve()).as_posix()
        if there in pages and target.suffix == ".html":
            tag["href"] = "#" + name(there, unquote(link.fragment))
        else:  # the source of a function, a file to download: nothing that is on paper
            tag.name = "span"
            del tag["href"]
    return text


def flipbooks(soup: BeautifulSoup) -> list[tuple[Tag, Tag]]:
    """For each flipbook of a page: the picture that it opens with, and the element in whose place it goes."""
    stored = soup.select_one('script[type="application/vnd.jupyter.widget-state+json"]')
    models = json.loads(stored.string)["state"] if stored else {}

    def state(reference: str) -> dict[str, Any]:
        return models[reference.removeprefix("IPY_MODEL_")]["state"]

    made = []
    for view in soup.select('script[type="application/vnd.jupyter.widget-view+json"]'):
        slider, stack = map(state, state(json.loads(view.string)["model_id"])["children"])
        at, labels = slider["index"], slider["_options_labels"]
        says = f"{slider['description']}: {labels[at]}. One of {len(labels)} frames, {labels[0]} to {labels[-1]}."
        picture = state(stack["children"][at])["value"]
        html = f'<div class="flipbook"><p class="says">{escape(says)}</p>{picture}</div>'
        made.append((BeautifulSoup(html, "html.parser").div, view))
    return made


def document(pages: list[str]) -> str:
    """The whole book as one page of HTML."""
    captions = {part["chapters"][0]["file"]: part["caption"] for part in TOC["parts"]}
    heads, contents, body = [], [], []
    for number, page in enumerate(pages):
        text = article(page, pages)
        part = captions.get(page) if len(pages) > 1 else None
        title = text.find("h1")
        if page == TOC["root"]:  # the book's title and its picture have a page of their own
            title.string = "What this book is"
            text.find("figure").decompose()
        if part:
            contents.append(f'<p class="part">{escape(part)}</p>')
        contents.append(_entry("page", name(page), title))
        contents += [
            _entry("section", tag.find_parent("section")["id"], tag)
            for tag in text.find_all("h2")
            if tag.find_parent("section").has_attr("id") and page != "subject_index"  # not letter by letter
        ]
        head = json.dumps(title.get_text(), ensure_ascii=False)
        heads.append(f"@page p{number} {{ @top-right {{ content: {head} }} }}")
        for tag in text.find_all(re.compile(r"^h[1-5]$")) if page != TOC["root"] else []:
            tag.name = f"h{int(tag.name[1]) + 1}"  # below its part
        above = f'<h1 class="part">{escape(part)}</h1>' if part else ""
        body.append(
            f'<div class="chapter" id="{name(page)}" style="page: p{number}">{above}{text.decode_contents()}</div>'
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    values = {
        "title": escape(CONFIG["title"]),
        "author": escape(CONFIG["author"]),
        "year": escape(CONFIG["copyright"]),
        "version": escape(project["version"]),
        "cover": (ROOT / "book" / "_static" / "cover.png").as_uri(),
        "site": SITE.resolve().as_uri(),
        "fonts": Path(matplotlib.get_data_path(), "fonts", "ttf").as_uri(),
        "styles": (ROOT / "book" / "pdf.css").read_text("utf-8"),
        "heads": "\n".join(heads),
        "mathjax": mathjax(),
        "contents": "\n".join(contents),
        "body": "\n".join(body),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], (ROOT / "book" / "pdf.html").read_text("utf-8"))


def _entry(kind: str, target: str, heading: Tag) -> str:
    text = heading.decode_contents().strip()
    return f'<a class="{kind}" href="#{target}"><span>{text}</span><span class="at" data-of="{target}"></span></a>'


def mathjax() -> str:
    """The scripts with which the pages of the site draw their mathematics, as the site has them."""
    soup = BeautifulSoup((SITE / "notation.html").read_text("utf-8"), "html.parser")
    scripts = [tag for tag in soup.head.select("script") if "MathJax" in tag.text or "mathjax" in tag.get("src", "")]
    for tag in scripts:
        if not urlsplit(tag.get("src", "")).scheme and tag.get("src"):
            tag["src"] = (SITE / urlsplit(tag["src"]).path).resolve().as_uri()
    return "\n".join(map(str, scripts))


# A formula has its TeX as its description, instead of a tag in the PDF for every letter of it.
DESCRIBE = """() => {
  for (const { math, typesetRoot: box } of window.MathJax?.startup?.document?.math ?? []) {
    box.setAttribute('role', 'img');
    box.setAttribute('aria-label', math.trim());
    box.querySelector('mjx-assistive-mml')?.remove();
  }
}"""

# Shrinks what is wider than the column, and says what is wider all the same.
FIT = """column => {
  const wide = (box, inner, smallest) => {
    const room = box.clientWidth - (box.querySelector(':scope > .eqno')?.offsetWidth ?? 0);
    const ratio = room / inner.getBoundingClientRect().width;
    if (ratio < 1) box.style.fontSize = Math.max(ratio * 0.99, smallest) * 100 + '%';
  };
  for (const box of document.querySelectorAll('div.math')) wide(box, box.querySelector('mjx-math'), 0.5);
  for (const table of document.querySelectorAll('table')) wide(table.parentElement, table, 0.6);
  for (const pre of document.querySelectorAll('.cell_output pre')) {  // what is printed as a table keeps its columns
    const longest = Math.max(...pre.textContent.split('\\n').map(line => line.length));
    const probe = pre.appendChild(document.createElement('span'));
    probe.textContent = '0'.repeat(50);
    const style = getComputedStyle(pre), padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
    const ratio = (pre.clientWidth - padding) / (longest * probe.getBoundingClientRect().width / 50);
    probe.remove();
    if (ratio < 1 && ratio > 0.75) pre.style.fontSize = ratio * 0.99 * parseFloat(style.fontSize) + 'px';
  }
  return [...document.querySelectorAll('.chapter *')]
    .filter(element => element.getBoundingClientRect().right > column + 2)
    .map(element => `${element.closest(".chapter").id}: ${element.tagName} ${element.textContent.trim().slice(0, 60)}`);
}"""

NUMBER = """numbers => {
  for (const place of document.querySelectorAll('.at')) place.textContent = numbers[place.dataset.of] ?? '';
}"""


def printed(source: Path, browser: str) -> tuple[bytes, dict[str, int]]:
    """The document as a PDF, with page numbers in its table of contents; and these numbers."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    how = {"prefer_css_page_size": True, "print_background": True}
    with sync_playwright() as driver:
        with driver.chromium.launch(executable_path=browser, args=[*flags, "--disable-component-update"]) as chrome:
            tab = chrome.new_page(viewport={"width": COLUMN, "height": 900})
            tab.set_default_timeout(600_000)
            tab.route(re.compile("^https?:"), lambda route: route.abort())
            tab.emulate_media(media="print")
            tab.goto(source.as_uri())
            tab.evaluate("window.MathJax?.startup?.promise?.then(() => document.fonts.ready).then(() => 0)")
            tab.evaluate(DESCRIBE)
            for place in tab.evaluate(FIT, COLUMN):
                print("wider than the page:", place, file=sys.stderr)
            numbers = destinations(tab.pdf(**how))  # without an outline, which takes long
            tab.evaluate(NUMBER, numbers)
            return tab.pdf(**how, outline=True, tagged=True), numbers


def destinations(pdf: bytes) -> dict[str, int]:
    """On which page, counted from 1, each named place of the document is."""
    reader = PdfReader(BytesIO(pdf))
    order = {page.indirect_reference.idnum: i for i, page in enumerate(reader.pages, start=1)}
    return {place.lstrip("/"): order[to.page.idnum] for place, to in reader.named_destinations.items()}


def with_properties(pdf: bytes, author: str) -> bytes:
    """The same file, appended to it who wrote it, and that a reader opens it with its outline beside it."""
    writer = PdfWriter(BytesIO(pdf), incremental=True)
    writer.add_metadata({"/Author": author})
    writer.page_mode = "/UseOutlines"
    writer.write(changed := BytesIO())
    return changed.getvalue()


def main() -> None:
    options = argparse.ArgumentParser(description="Print the built site as one PDF.")
    options.add_argument("--build", action="store_true", help="build the site first")
    options.add_argument("--pages", nargs="+", default=PAGES, help="names as in _toc.yml; all by default")
    options.add_argument(
        "--out", type=Path, help="the file to write", default=ROOT / "_build" / "pdf" / "diffusion-models-measured.pdf"
    )
    chosen = options.parse_args()
    if unknown := [page for page in chosen.pages if page not in PAGES]:
        sys.exit(f"--pages: {', '.join(unknown)}: not in _toc.yml, which has {', '.join(PAGES)}")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        sys.exit(
            "The PDF is printed by Chromium or Chrome, and neither is on the PATH. Install one, then run this again."
        )
    if not find_spec("playwright"):
        sys.exit("Playwright, which drives the browser, is not installed: run `pip install -r requirements.txt`.")
    if chosen.build:
        subprocess.run([Path(sys.executable).parent / "jupyter-book", "build", "book"], cwd=ROOT, check=True)
    if missing := [page for page in chosen.pages if not (SITE / page).with_suffix(".html").exists()]:
        sys.exit(f"{missing[0]} is not built: run `jupyter-book build book` first, or `make pdf`, which does both")
    chosen.out = chosen.out.resolve()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    source = chosen.out.with_suffix(".html")
    source.write_text(document(chosen.pages), "utf-8")
    pdf, numbers = printed(source, browser)
    if len(numbers) < len(chosen.pages):
        print(
            "This browser's PDF does not say where its headings are: the contents have no page numbers.",
            file=sys.stderr,
        )
    chosen.out.write_bytes(with_properties(pdf, CONFIG["author"]))
    source.unlink()
    pages = len(PdfReader(chosen.out).pages)
    print(f"{chosen.out}: {pages} pages, {chosen.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
