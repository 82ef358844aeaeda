"""The index: it is complete and in order, and known entries lead to the right pages."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "book" / "_ext"))

import subject_index  # noqa: E402


@pytest.fixture(scope="module")
def index(site):
    """What is under each heading of the index: its entries, as (words, [(text, address, bold)])."""
    page = BeautifulSoup((site / "subject_index.html").read_text("utf-8"), "html.parser")
    found = {}
    for section in page.select("article section section"):
        found[section.h2.contents[0].strip()] = [
            (
                " ".join(item.get_text().split()),
                [(link.get_text(), link["href"], link.parent.name == "strong") for link in item.select("a")],
            )
            for item in section.select("li")
        ]
    return found


def entry(index, words):
    """The entry that begins with these words and has links to sections."""
    (links,) = [links for text, links in index[words[0].upper()] if re.match(re.escape(words) + r"(:|, see |$)", text)]
    return links


def test_a_term_leads_to_where_it_is_treated_and_to_its_definition(index):
    links = entry(index, "cosine schedule")
    assert links[0] == ("cosine schedule", "glossary.html#term-cosine-schedule", False)
    assert ("1.7", "notebooks/01_forward_diffusion.html#why-a-thousand-steps-from-0-0001-to-0-02", True) in links
    links = entry(index, "posterior")
    assert links[0][1] == "glossary.html#term-posterior"
    assert any(bold and address.startswith("notebooks/02_reverse_diffusion.html#") for _, address, bold in links)
    links = entry(index, "Tweedie’s formula")
    assert ("Appendix A, Tweedie’s formula", "notebooks/A_gaussian_identities.html#tweedie-s-formula", True) in links


def test_other_words_for_a_term_lead_to_it(index):
    assert entry(index, "ELBO") == [("variational bound", "glossary.html#term-variational-bound", False)]
    assert {text for text, _, _ in entry(index, "schedule")} >= {"noise schedule"}


def test_every_term_of_the_glossary_is_there(index):
    glossary = (ROOT / "book" / "glossary.md").read_text("utf-8").split("```{glossary}\n")[1].split("\n```")[0]
    terms = [block.strip().splitlines()[0] for block in re.split(r"\n\n", glossary)]
    there = {links[0][0] for items in index.values() for _, links in items if links}
    assert len(terms) > 100 and {term.replace("'", "’") for term in terms} <= there


def test_most_terms_lead_to_a_chapter(index):
    entries = [pair for items in index.values() for pair in items if pair[1] and "glossary.html" in pair[1][0][1]]
    terms = [links for text, links in entries if text.startswith(links[0][0])]
    led = [any("notebooks/" in address for _, address, _ in links) for links in terms]
    assert sum(led) > 0.6 * len(led)


def test_entries_are_in_alphabetical_order(index):
    letters = [title for title in index if len(title) == 1]
    assert letters == sorted(letters) and len(letters) > 20
    for letter in letters:
        heads = [subject_index.key(re.split(r": |, see", text)[0]) for text, _ in index[letter]]
        heads = [head for head in heads if "(" not in head]  # mathematics is sorted by its source
        assert all(head.startswith(letter.lower()) for head in heads)
        assert heads == sorted(heads)


def test_every_proposition_is_there_by_its_title_and_number(index, site):
    listed = {address: text for items in index.values() for _, links in items for text, address, _ in links}
    for path in sorted((site / "notebooks").glob("*.html")):
        page = BeautifulSoup(path.read_text("utf-8"), "html.parser")
        for box in page.select("article div.proof"):
            number = box.select_one(".caption-number").get_text().strip()
            assert listed[f"notebooks/{path.name}#{box['id']}"].split(", ")[-1] == number


def test_every_verdict_is_there(index):
    claims = " ".join(text for text, _ in index["Claims"])
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        prose = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        for claim, verdict in re.findall(r"\{admonition\} Verdict on (C\d+): (.+)", prose):
            assert re.search(rf"\b{claim}\. [^C]*(?:C[^\d][^C]*)*{verdict.capitalize()}, \d", claims), claim


def test_a_function_leads_to_its_page_and_to_the_chapters_that_use_it(index):
    (links,) = [links for text, links in index["Names of the module"] if text.startswith("ddim (diffutils.samplers):")]
    assert links[0][1] == "api/sampling.html#diffutils.samplers.ddim"
    assert any(text.startswith("9.") for text, _, _ in links)


@pytest.mark.parametrize(
    ("term", "text", "fits"),
    [
        ("noise schedule", "Noise schedules", True),
        ("time step", "time-step", True),
        ("energy distance", "energy distances", True),
        ("likelihood", "likelihoods", True),
        ("inversion", "conversion", False),
        ("Tweedie's formula", "Tweedie’s formulas", True),
    ],
)
def test_a_term_is_found_in_the_ways_it_is_written(term, text, fits):
    part = subject_index.Part("page", "anchor", "title", text=[text])
    assert bool(subject_index.mentions({term: term}, [part])[term]) == fits


def test_the_longest_term_that_fits_is_meant():
    part = subject_index.Part("page", "anchor", "title", text=["the posterior collapse of a VAE, not of a vae"])
    scores = subject_index.mentions({term: term for term in ("posterior", "posterior collapse", "VAE")}, [part])
    assert not scores["posterior"] and scores["posterior collapse"][0] == 1 and scores["VAE"][0] == 1
