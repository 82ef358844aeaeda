"""An index of subjects, made when the book is built, from what its pages say.

``{subject-index}`` puts it on a page. Under each term of the glossary it lists the sections where the term is in a
heading, in bold or italics, or in the title of a proposition, and for other chapters the section that speaks of it
most; under each proposition its number; under each claim its verdict; under each name of the module the first section
of each chapter whose code uses it. The lines of the directive add what the glossary has not: a subject, or other words
for one, as in ``ELBO = variational bound``.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

APART = {"Exercises", "Summary", "Further reading"}  # every chapter has them: they explain nothing first
UNSPOKEN = (nodes.math, nodes.math_block, nodes.literal, nodes.raw, nodes.comment, nodes.system_message)
MOST, FEW = 10, 4  # places under one term; where there are few, one that only names it counts


@dataclass
class Part:
    """A section: where it is, and what is said in it, without what its own sections say."""

    page: str
    anchor: str
    title: str
    text: list[str] = field(default_factory=list)
    marked: list[str] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    proofs: list[tuple[str, str, str, list]] = field(default_factory=list)  # id, kind, words, nodes of the title
    claims: dict[str, list] = field(default_factory=dict)  # as the chapter's first table words them
    verdicts: dict[str, str] = field(default_factory=dict)


class Place(nodes.General, nodes.Element):
    """Where the index will be, once all pages are read."""


class SubjectIndex(SphinxDirective):
    has_content = True

    def run(self):
        env = self.env
        env.subject_index_pages = getattr(env, "subject_index_pages", set()) | {env.docname}
        return [Place(lines=[line for line in self.content if line.strip()])]


# Reading: one page at a time.


def read(app, doctree):
    """Keep what a page says, section by section; and the terms of a glossary, with their anchors."""
    page = app.env.docname
    parts: list[Part] = []
    if page.startswith("notebooks/"):
        _walk(doctree, None, parts, page)
    terms = [
        (item[0].astext(), item[0]["ids"][0])
        for glossary in doctree.findall(nodes.definition_list)
        if "glossary" in glossary["classes"]
        for item in glossary
    ]
    _kept(app.env)[page] = parts, terms


def _kept(env):
    if not hasattr(env, "subject_index"):
        env.subject_index = {}
    return env.subject_index


def _walk(node, part, parts, page):
    classes = node.get("classes", []) if isinstance(node, nodes.Element) else []
    if isinstance(node, UNSPOKEN) or "exercise" in classes or "solution" in classes:
        return
    if isinstance(node, nodes.literal_block):
        if part:
            part.code.append(node.astext())
        return
    if isinstance(node, nodes.Text):
        if part:
            part.text.append(node.astext())
        return
    if isinstance(node, nodes.section) and isinstance(node.parent, nodes.document | nodes.section):
        part = Part(page, node["ids"][0], node[0].astext())
        parts.append(part)
    elif part and "proof" in classes and node.get("countertype"):
        title = node[0]
        part.proofs.append((node["ids"][0], node["countertype"], _bare(title.astext()), title.deepcopy().children))
    elif part and "verdict" in classes:
        if found := re.match(r"Verdict on (C\d+): (.+)", node[0].astext()):
            part.verdicts[found[1]] = found[2]
    elif part and isinstance(node, nodes.row) and re.fullmatch(r"C\d+", node[0].astext()):
        part.claims[node[0].astext()] = node[1].deepcopy()[0].children
        return
    elif part and isinstance(node, nodes.strong | nodes.emphasis) and len(node.astext().split()) <= 5:
        part.marked.append(node.astext())
    for child in node.children:
        _walk(child, part, parts, page)
    if part and isinstance(node, nodes.TextElement) and not isinstance(node, nodes.Inline):
        part.text.append("\n\n")


def _bare(title):
    return title.strip().removeprefix("(").removesuffix(")")


def forget(app, env, page):
    _kept(env).pop(page, None)


def merge(app, env, pages, other):
    _kept(env).update({page: kept for page, kept in _kept(other).items() if page in pages})
    env.subject_index_pages = getattr(env, "subject_index_pages", set()) | getattr(other, "subject_index_pages", set())


def write_again(app, env):
    """Whatever has changed, the index may have. It will have formulas, which Sphinx, having read it, doesn't know."""
    pages = sorted(getattr(env, "subject_index_pages", set()))
    env.get_domain("math").data["has_equations"].update(dict.fromkeys(pages, True))
    return pages


# Writing: the whole index.


def forms(term):
    """Ways in which a term is written, as a pattern: a hyphen or a space, one or several."""
    words = [re.escape(word) for word in re.split(r"[\s-]+", plain(term))]
    last = words[-1]
    words[-1] = f"(?:{last}|{last[:-1]}ies)" if last.endswith("y") else f"{last}(?:s|es)?"
    return r"[\s-]+".join(words)


def plain(text):
    return text.replace("’", "'").replace("–", "-")


def curly(text):
    return text.replace("'", "’")


def key(text):
    """What an entry is sorted by: letters without accents, and no article in front."""
    letters = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"^(?:the|a|an) |[^a-z0-9 ]", "", letters).strip()


def mentions(subjects, parts):
    """For each subject, how much each section has to do with it. The longest term that fits is the one meant."""
    by_length = sorted(subjects, key=len, reverse=True)
    pattern = re.compile(
        r"(?<![\w-])(?:" + "|".join(f"(?P<t{i}>{forms(term)})" for i, term in enumerate(by_length)) + r")(?![\w-])",
        re.IGNORECASE,
    )

    def found(text):
        for match in pattern.finditer(plain(text)):
            term = by_length[int(match.lastgroup[1:])]
            if not term.isupper() or match[0].rstrip("s").isupper():  # GAN, not gan
                yield subjects[term]

    scores = defaultdict(Counter)
    for i, part in enumerate(parts):
        for term, count in Counter(found("".join(part.text))).items():
            half = any(plain(term).lower().startswith(words.lower() + " ") for words in map(plain, part.marked))
            scores[term][i] += min(count, 4) + 5 * half  # as in: the **cosine** schedule
        for text in [part.title, *part.marked, *(words for _, _, words, _ in part.proofs)]:
            for term in set(found(text)):
                scores[term][i] += 8 if text == part.title else 5
    return scores


def chosen(scores, parts):
    """The sections to list, and whether each treats the subject: all that do, and one of each other chapter."""
    treated = {i for i, score in scores.items() if score >= 5 and parts[i].title not in APART}
    pages = {parts[i].page for i in treated}
    best = {}
    for i, score in scores.items():
        here = parts[i].page
        if here not in pages and parts[i].title not in APART and score > scores.get(best.get(here), 0):
            best[here] = i
    spoken = sorted(best.values(), key=lambda i: -scores[i])
    spoken = [i for rank, i in enumerate(spoken) if scores[i] >= 2 or len(treated) + rank < FEW]
    kept = sorted([*treated, *spoken], key=lambda i: (i not in treated, -scores[i]))[:MOST]
    return [(i, i in treated) for i in sorted(kept)]


class Writer:
    def __init__(self, app, page, lines):
        self.app, self.page, self.env = app, page, app.env
        order = [name for name in reading_order(self.env) if name in _kept(self.env)]
        self.parts = [part for name in order for part in _kept(self.env)[name][0]]
        self.glossary = {term: (name, at) for name in order for term, at in _kept(self.env)[name][1]}
        self.see, self.subjects = {}, {term: term for term in self.glossary}
        for line in lines:
            words, _, term = (side.strip() for side in line.partition("="))
            self.subjects[words] = term or words
            if term:
                self.see[words] = term

    def link(self, page, anchor, text, title=""):
        uri = f"{self.app.builder.get_relative_uri(self.page, page)}#{anchor}"
        more = {"reftitle": title} if title else {}
        shown = nodes.Text(text) if isinstance(text, str) else text
        return nodes.reference("", "", shown, internal=True, refuri=uri, **more)

    def term(self, term):
        """A subject, with a link to its definition if it has one."""
        return self.link(*self.glossary[term], term) if term in self.glossary else nodes.Text(curly(term))

    def to(self, part):
        """A link to a section, by its number, or by its appendix and its title."""
        numbers = self.env.toc_secnumbers.get(part.page, {})
        number = numbers.get(f"#{part.anchor}") or numbers.get("")
        if number:
            return self.link(part.page, part.anchor, ".".join(map(str, number)), part.title)
        page = self.env.titles[part.page].astext()
        return self.link(part.page, part.anchor, short(page) if part.title == page else f"{short(page)}, {part.title}")

    def entry(self, head, links, colon=": "):
        paragraph = nodes.paragraph("", "", *head)
        for i, link in enumerate(links):
            paragraph += [nodes.Text("; " if i else colon), link]
        return nodes.list_item("", paragraph)

    def terms(self):
        """(sort key, entry) of each subject, and of each word that several have in common."""
        scores = mentions(self.subjects, self.parts)
        for term in sorted(set(self.subjects.values())):
            head = self.term(term)
            places = [(self.to(self.parts[i]), treated) for i, treated in chosen(scores[term], self.parts)]
            links = [nodes.strong("", "", link) if treated else link for link, treated in places]
            if links or term in self.glossary:
                yield key(term), self.entry([head], links)
        alike = defaultdict(list)
        for term in self.glossary:
            if " " in term:
                alike[term.split()[-1]].append(term)
        also = {word: terms for word, terms in alike.items() if len(terms) > 1 and word not in self.subjects}
        for words, terms in [*also.items(), *((words, [term]) for words, term in self.see.items())]:
            head = [nodes.Text(curly(words)), nodes.Text(", "), nodes.emphasis("", "see")]
            yield key(words), self.entry(head, [self.term(term) for term in terms], " ")

    def propositions(self):
        for part in self.parts:
            for anchor, kind, words, title in part.proofs:
                number = ".".join(map(str, self.env.toc_fignumbers[part.page][kind][anchor]))
                head = unbracketed([child.deepcopy() for child in title])
                yield key(words), self.entry(head, [self.link(part.page, anchor, f"{kind.title()} {number}")])

    def claims(self):
        """Each claim as it is usually taught, what the book says of it, and where."""
        worded, verdicts = {}, defaultdict(list)
        for part in self.parts:
            worded |= {claim: text for claim, text in part.claims.items() if claim not in worded}
            for claim, verdict in part.verdicts.items():
                verdicts[claim].append((verdict, self.to(part)))
        for claim in sorted(worded, key=lambda claim: int(claim[1:])):
            words = [nodes.strong("", claim), nodes.Text(". "), *(child.deepcopy() for child in worded[claim])]
            paragraph = nodes.paragraph("", "", *words)
            for verdict, link in verdicts[claim]:
                paragraph += [nodes.Text(" "), nodes.emphasis("", verdict.capitalize()), nodes.Text(", "), link]
                paragraph += nodes.Text(".")
            yield nodes.list_item("", paragraph)

    def names(self):
        """Functions and classes of the module, and the first section of each chapter whose code uses them."""
        code = ["\n".join(part.code) for part in self.parts]
        for full, entry in self.env.get_domain("py").objects.items():
            module, _, name = full.rpartition(".")
            if entry.objtype not in ("function", "class") or not module.startswith("diffutils"):
                continue
            room = module.rpartition(".")[2]
            pattern = rf"\b{room}\.{name}\b" + (rf"|(?<![\w.\"']){name}[(.]" if entry.objtype == "class" else "")
            first = {}
            for part, text in zip(self.parts, code, strict=True):
                if part.page not in first and part.title not in APART and re.search(pattern, text):
                    first[part.page] = part
            if first:
                link = self.link(entry.docname, entry.node_id, nodes.literal("", name))
                head = [link, nodes.Text(" ("), nodes.literal("", module), nodes.Text(")")]
                yield key(name), self.entry(head, [self.to(part) for part in first.values()])

    def sections(self):
        entries = sorted([*self.terms(), *self.propositions()], key=lambda pair: pair[0])
        letters = defaultdict(list)
        for sort_key, item in entries:
            letters[sort_key[0].upper() if sort_key[:1].isalpha() else "0-9"].append(item)
        names = [item for _, item in sorted(self.names(), key=lambda pair: pair[0])]
        blocks = {**letters, "Claims": list(self.claims()), "Names of the module": names}
        jump = nodes.paragraph(classes=["subject-index-jump"])
        for title, items in blocks.items():
            anchor = "subjects-" + nodes.make_id(title) if title != "0-9" else "subjects-0-9"
            jump += [nodes.reference("", "", nodes.Text(title), internal=True, refuri=f"#{anchor}"), nodes.Text(" ")]
            many = nodes.bullet_list("", *items, classes=["subject-index"])
            if title == "Claims":
                many["classes"] = ["subject-index-claims"]
            blocks[title] = nodes.section("", nodes.title("", title), many, ids=[anchor])
        return [jump, *blocks.values()]


def short(title):
    """What a page is called beside a section of its own: Appendix A for Appendix A: Gaussian identities."""
    return re.sub(r"^(Appendix \w+): .*", r"\1", title)


def unbracketed(children):
    """The title of a proposition without the brackets that go round it."""
    for at, cut in ((0, str.lstrip), (-1, str.rstrip)):
        if isinstance(children[at], nodes.Text):
            text = cut(children[at].astext())
            children[at] = nodes.Text(text.removeprefix("(") if at == 0 else text.removesuffix(")"))
    return children


def reading_order(env):
    """All pages, in the order of the contents."""

    def below(page):
        yield page
        for child in env.toctree_includes.get(page, []):
            yield from below(child)

    return list(below(env.config.root_doc))


def write(app, doctree, page):
    for place in list(doctree.findall(Place)):
        place.replace_self(Writer(app, page, place["lines"]).sections())


def setup(app):
    app.add_node(Place)
    app.add_directive("subject-index", SubjectIndex)
    app.connect("doctree-read", read)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("env-updated", write_again)
    app.connect("doctree-resolved", write)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
