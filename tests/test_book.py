"""The built site: the reader's command makes every page without a warning, and a browser without a network shows all of
it, to everyone.
"""

import ast
import re
import shutil
import threading
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
PAGES = [TOC["root"]] + [chapter["file"] for part in TOC["parts"] for chapter in part["chapters"]]
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", MAC])), None)

PLAYWRIGHT, AXE = find_spec("playwright"), find_spec("axe_playwright_python")

WIDGET = "application/vnd.jupyter.widget-view+json"

every_page = pytest.mark.parametrize("page", PAGES)


class Page(HTMLParser):
    """What the tests look at in a page: ids, links, pictures, the addresses it loads from, and the running text."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.pictures, self.loads, self.text = set(), [], [], [], []
        self.hidden, self.levels = [], []
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
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag in ("pre", "script", "style"):
            self.hidden.append(tag)

    def handle_endtag(self, tag):
        if self.hidden and self.hidden[-1] == tag:
            self.hidden.pop()

    def handle_data(self, data):
        if not self.hidden:
            self.text.append(data)


@cache
def parsed(path):
    """A page of the built site; many links lead to the same few."""
    return Page(path.read_text(encoding="utf-8"))


def read(site, page):
    return parsed((site / page).with_suffix(".html").resolve())


def test_jupyter_book_is_the_one_that_reads_our_settings():
    assert version("jupyter-book").split(".")[0] == "1"


def test_contents_name_every_chapter():
    notebooks = sorted(f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(page for page in PAGES if page.startswith("notebooks/")) == notebooks


@pytest.mark.parametrize("page", [page for page in PAGES if re.match(r"notebooks/\d", page)])
def test_a_chapter_is_numbered_as_its_file_is(site, page):
    """Propositions and exercises are numbered after the contents, figures after the file."""
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    (number,) = re.findall(r'<h1><span class="section-number">(\d+)\. </span>', html)
    assert int(number) == int(Path(page).name.split("_")[0])


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
            assert unquote(parts.fragment) in parsed(target).ids, link


@every_page
def test_pictures_are_described(site, page):
    for picture in read(site, page).pictures:
        assert picture.get("alt", "").strip(), picture["src"]
        assert not picture["alt"].startswith((".", "_")) and not picture["alt"].endswith(".png"), picture["alt"]


@every_page
def test_headings_go_down_one_level_at_a_time(site, page):
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    levels = Page(html[html.index("<article") : html.index("</article>")]).levels
    assert levels[0] == 1 and all(below <= above + 1 for above, below in zip(levels, levels[1:], strict=False)), levels


@every_page
def test_page_loads_nothing_from_another_host(site, page):
    assert [address for address in read(site, page).loads if urlsplit(address).netloc] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")])
def test_a_chapter_can_be_downloaded_and_is_offered_nowhere_else(site, page):
    """The notebook itself is offered; buttons that would open it on a server are off."""
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    assert f"{page}.ipynb" in html and "btn-download-source-button" in html
    assert "Launch on" not in html and "btn-launch" not in html and "Open in Colab" not in html


def test_every_method_is_on_the_cheat_sheet():
    """Each kernel and each change to the loop is there with its function, and so is each loss."""
    sheet = (ROOT / "book" / "cheat_sheet.md").read_text(encoding="utf-8")
    apart = {"sample": "the end of reverse", "direct": "a variant of ddg", "interpolate": "of noise, no update"}
    tree = ast.parse((ROOT / "diffutils" / "samplers.py").read_text(encoding="utf-8"))
    public = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    missing = [name for name in public if name not in apart and f"~diffutils.samplers.{name}`" not in sheet]
    assert not missing


def test_every_module_has_its_place_in_the_pages_of_the_module():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "book" / "api").glob("*.md"))
    documented = re.findall(r"^\.\. automodule:: (\S+)$", text, re.MULTILINE)
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "diffutils").rglob("*.py")]
    assert sorted(documented) == sorted(".".join(file.parts) for file in files if file.name[0] != "_")


def test_the_page_for_teachers_lists_the_exercises_of_its_chapters_with_their_claims():
    page = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    chapters = re.findall(r"^### Chapter (\d+): ", page, re.MULTILINE)
    assert len(chapters) >= 8
    tested, exercised = set(), set()
    for chapter in chapters:
        (path,) = (ROOT / "notebooks").glob(f"{int(chapter):02}_*.ipynb")
        cells = nbformat.read(path, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        exercises = re.findall(r"^```\{exercise\} (.+)\n:label: ex-(\S+)", prose, re.MULTILINE)
        rows = re.findall(rf"^\| \[{chapter}\.\d+\]\(#ex-({chapter}-\d+)\) (.+?) \| (.+?) \|", page, re.MULTILINE)
        assert [(title, label) for label, title, _ in rows] == exercises
        tested |= set(re.search(r"\*\*Claims tested:\*\* (.+)", prose).group(1).split(", "))
        exercised |= {claim for _, _, claims in rows for claim in claims.split(", ")}
    assert tested == exercised


needs_browser = pytest.mark.skipif(
    BROWSER is None or PLAYWRIGHT is None,
    reason="no Chromium or Chrome on the PATH, or no playwright, so the pages cannot be looked at",
)


class Tab:
    """A tab of a browser that reaches no other host, and what went wrong in it."""

    def __init__(self, browser, site):
        self.page, self.site = browser.new_page(viewport={"width": 1400, "height": 900}), site
        self.asked, self.errors = [], []
        self.page.set_default_timeout(120_000)  # a busy machine takes its time
        self.page.route("**/*", self._route)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _route(self, route):
        here = urlsplit(route.request.url)
        if here.scheme in ("file", "data", "blob") or here.hostname == "127.0.0.1":
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def open(self, page, rest="", where=None):
        """Go to a page, opened as a file unless another place is given, and wait until its mathematics is there."""
        self.asked.clear(), self.errors.clear()
        self.page.goto((where or self.site.as_uri()) + f"/{page}.html{rest}")
        self.page.evaluate("window.MathJax?.startup?.promise?.then(() => 0)")
        return self.page


@pytest.fixture(scope="module")
def tab(site):
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as driver:
        with driver.chromium.launch(executable_path=BROWSER, args=[*flags, "--disable-component-update"]) as browser:
            yield Tab(browser, site)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")])
def test_exercises_propositions_and_equations_have_the_number_of_their_chapter(site, page):
    """Or the letter of their appendix, counted from 1: as the cells call them that solve the exercises."""
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    chapter = page.removeprefix("notebooks/").split("_")[0].lstrip("0")
    source = "\n".join(cell.source for cell in nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells)
    for written, shown in (
        ("```{exercise}", r">Exercise ([^ <]+) <"),
        ("```{prf:proposition}", r">Proposition ([^ <]+) <"),
        ("$$ (eq-", r'class="eqno">\(([^)]+)\)<'),
    ):
        assert re.findall(shown, html) == [f"{chapter}.{i + 1}" for i in range(source.count(written))]
    solved = re.findall(r"^# Solution of (Exercise \S+\d)", source, re.MULTILINE)
    assert all(f">{name} <" in html for name in solved)


def test_the_page_of_claims_says_what_the_verdicts_say():
    """Each claim of the chapters is on it, with its verdict, and the link leads to the section that has the box."""
    page = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (C\d+) \| .+? \| (\[.+?\]\(#[\w-]+\)) \|", page, re.MULTILINE))
    verdicts = {}
    for page in PAGES:
        if page.startswith("notebooks/"):
            cells = nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells
            text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
            for part in re.split(r"^(?=\(sec-[\w-]+\)=$)", text, flags=re.MULTILINE):
                for claim, verdict in re.findall(r"\{admonition\} Verdict on (C\d+): (.+)", part):
                    verdicts.setdefault(claim, []).append(f"[{verdict.strip()}](#{part[1 : part.index(')')]})")
    assert list(rows) == [f"C{i}" for i in range(1, 23)]
    assert all(rows[claim] in verdicts[claim] for claim in rows)


@every_page
def test_a_page_shows_no_text_of_machines(site, page):
    """No folder or address of the machine that built it, and no words that Python or PyTorch put for missing ones."""
    html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    foreign = [
        str(ROOT),
        "PosixPath",
        "&lt;function",
        "Alias for field number",
        "Should be overridden by all subclasses",
    ]
    assert [words for words in foreign if words in html] == []


CUT_OFF = """() => [...document.querySelectorAll("article span.math, article div.math")].filter(formula => {
  const drawn = formula.querySelector("mjx-math"), right = element => element.getBoundingClientRect().right;
  return drawn && right(drawn) > right(formula) + 1 && getComputedStyle(formula).overflowX !== "auto";
}).map(formula => formula.textContent)"""


@needs_browser
@every_page
def test_browser_shows_the_page_without_another_host(tab, site, page):
    """All mathematics is drawn, nothing is asked of another host, nothing fails; on a telephone nothing sticks out,
    and what is wider than the page can be scrolled.
    """
    shown = tab.open(page)
    html = shown.content()
    text = "".join(Page(html).text)
    written = (site / page).with_suffix(".html").read_text(encoding="utf-8")
    assert ('class="math' not in written) or "<mjx-container" in html
    assert "<mjx-merror" not in html and 'mathcolor="red"' not in html  # a formula or a macro not understood
    assert "$$" not in text and r"\(" not in text and r"\[" not in text
    assert tab.asked == [] and tab.errors == []
    for width in 800, 400:
        shown.set_viewport_size({"width": width, "height": 900})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate(CUT_OFF) == []
    shown.set_viewport_size({"width": 1400, "height": 900})


@needs_browser
@pytest.mark.skipif(AXE is None, reason="the package axe-playwright-python, which brings axe, is not installed")
@every_page
def test_accessibility_audit_finds_nothing_serious(tab, page):
    """axe: contrast in both colour schemes, names, roles, alternatives, keyboard.

    The mathematics is taken out before: axe has nothing to say to its thousands of elements, and takes its time for it.
    """
    shown = tab.open(page)
    shown.evaluate("document.querySelectorAll('mjx-container').forEach(formula => formula.replaceWith('x'))")
    shown.evaluate((Path(AXE.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = []
    for scheme in "light", "dark":
        shown.evaluate("scheme => { document.documentElement.dataset.theme = scheme }", scheme)
        how = {"resultTypes": ["violations"], "preload": False} | (
            {} if scheme == "light" else {"runOnly": ["color-contrast"]}
        )
        result = shown.evaluate("how => axe.run(how)", how)
        for rule in result["violations"]:
            if rule["impact"] in ("serious", "critical"):
                places = [f"{node['target']}: {node['html'][:120]}" for node in rule["nodes"][:5]]
                found += [f"{scheme}: {rule['id']}: {rule['help']}", *places]
    assert not found, "\n".join(found)


@needs_browser
def test_search_finds_a_term(tab, site):
    """Opened as a file, and from a server, which also gives an excerpt of each page."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for where in None, f"http://127.0.0.1:{server.server_port}":
            shown = tab.open("search", "?q=posterior", where)
            first = shown.locator("#search-results li a", has_text="Reverse diffusion").first
            first.wait_for()
            assert (shown.locator("#search-results p.context").count() > 0) == (where is not None)
            assert tab.asked == [] and tab.errors == []
    finally:
        server.shutdown()


def sliders():
    """Each page that has flipbooks, and of how many frames its first one is, by the output that its notebook stores."""
    for page in PAGES:
        if page.startswith("notebooks/"):
            book = nbformat.read(ROOT / f"{page}.ipynb", as_version=4)
            outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
            said = [output["data"]["text/plain"] for output in outputs if WIDGET in output.get("data", {})]
            if said:
                yield page, int(re.search(r"(\d+) frames", said[0])[1])


@needs_browser
@pytest.mark.parametrize("page, frames", list(sliders()))
def test_a_slider_turns_its_pages_by_keyboard(tab, page, frames):
    """Without a kernel: one picture is seen at a time, the right one, and what the slider says goes with it."""
    shown = tab.open(page)
    slider, pages = (
        shown.locator(".flipbook input[type=range]").first,
        shown.locator(".flipbook-pages").first.locator("img"),
    )
    descriptions = [pages.nth(i).get_attribute("alt") for i in range(pages.count())]
    assert len(set(descriptions)) == len(descriptions) == int(slider.get_attribute("max")) + 1 == frames
    slider.focus()
    for key, step in ("ArrowLeft", -1), ("ArrowRight", 1), ("ArrowRight", 1):
        at, said = int(slider.input_value()), slider.get_attribute("aria-valuetext")
        shown.keyboard.press(key)
        seen = [pages.nth(i).is_visible() for i in range(pages.count())]
        assert sum(seen) == 1 and seen.index(True) == int(slider.input_value()) == at + step
        says = slider.get_attribute("aria-valuetext")
        assert says == shown.locator(".flipbook-value").first.inner_text() != said
        assert says in descriptions[at + step]


def test_six_chapters_have_a_slider():
    assert [page[10:12] for page, frames in sliders()] == ["01", "02", "08", "09", "11", "12"]


@needs_browser
def test_the_first_screen_says_what_the_reader_will_be_able_to_do(tab):
    shown = tab.open("index")
    last = shown.locator("article li", has_text="compare models").first.bounding_box()
    assert last["y"] + last["height"] < 900


@needs_browser
def test_a_solution_unfolds_by_keyboard(tab):
    shown = tab.open("notebooks/01_forward_diffusion")
    answer = shown.locator(".solution.dropdown p").filter(has_text="1.27").first
    assert not answer.is_visible()
    button = shown.locator(".solution.dropdown button").first
    button.focus()
    shown.keyboard.press("Enter")
    answer.wait_for(state="visible")
