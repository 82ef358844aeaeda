"""The built site: the reader's command makes every page without a warning, and a browser shows the mathematics."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", MAC])), None)

every_page = pytest.mark.parametrize("page", PAGES)


class Page(HTMLParser):
    """What the tests look at in a page: ids, links, pictures, the addresses it loads from, and the running text."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.pictures, self.loads, self.text = set(), [], [], [], []
        self.hidden = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag == "img":
            self.pictures.append(attributes)
        if tag in ("script", "img", "iframe") and attributes.get("src"):
            self.loads.append(attributes["src"])
        if tag == "link" and attributes.get("rel") == "stylesheet":
            self.loads.append(attributes["href"])
        if tag in ("pre", "script", "style"):
            self.hidden.append(tag)

    def handle_endtag(self, tag):
        if self.hidden and self.hidden[-1] == tag:
            self.hidden.pop()

    def handle_data(self, data):
        if not self.hidden:
            self.text.append(data)


@pytest.fixture(scope="session")
def site():
    """The folder of the site, built from nothing."""
    shutil.rmtree(ROOT / "_build", ignore_errors=True)
    jupyter_book = Path(sys.executable).parent / "jupyter-book"
    command = [jupyter_book, "build", "book", "--all", "-n", "-W", "--keep-going"]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    problems = [line for line in (built.stdout + built.stderr).splitlines() if re.search("WARNING|ERROR|rror:", line)]
    assert built.returncode == 0 and not problems, "\n".join(problems) or built.stderr[-3000:]
    return ROOT / "_build" / "html"


def read(site, page):
    return Page((site / page).with_suffix(".html").read_text(encoding="utf-8"))


def test_jupyter_book_is_the_one_that_reads_our_settings():
    assert version("jupyter-book").split(".")[0] == "1"


def test_contents_name_every_chapter():
    notebooks = sorted(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(page for page in PAGES if page.startswith("notebooks/")) == notebooks


@every_page
def test_page_is_built_with_one_title(site, page):
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    titles = re.findall(r"<h1>(.+?)<a", html[html.index("<article") :])
    assert len(titles) == 1 and titles[0].strip()


@every_page
def test_links_and_anchors_lead_somewhere(site, page):
    here = (site / page).with_suffix(".html")
    for link in read(site, page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (here.parent / unquote(parts.path)).resolve() if parts.path else here
        assert target.exists(), link
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in Page(target.read_text(encoding="utf-8")).ids, link


@every_page
def test_pictures_are_described(site, page):
    for picture in read(site, page).pictures:
        assert picture.get("alt", "").strip(), picture["src"]
        assert not picture["alt"].startswith((".", "_")) and not picture["alt"].endswith(".png"), picture["alt"]


@every_page
def test_page_loads_nothing_from_another_host(site, page):
    assert [address for address in read(site, page).loads if urlsplit(address).netloc] == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome found on the PATH, so the page cannot be looked at")
@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")] + ["notation", "glossary"])
def test_browser_shows_the_mathematics(site, page, tmp_path):
    address = (site / page).with_suffix(".html").as_uri()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path}", "--virtual-time-budget=30000", "--dump-dom", address]
    html = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
    text = "".join(Page(html).text)
    assert "<mjx-container" in html
    assert "<mjx-merror" not in html and 'mathcolor="red"' not in html  # a formula or a macro not understood
    assert "$$" not in text and r"\(" not in text and r"\[" not in text
