"""The notebooks as files: executed in order, with outputs that are clean, described, small and worth comparing."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.stem[0].isdigit()]  # the others are appendices: A_..., B_...
VERDICTS = {"holds": "tip", "holds with a condition": "warning", "does not hold as stated": "danger"}

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def prose(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def printed(cell):
    """All text that a cell shows."""
    streams = [output.text for output in cell.outputs if output.output_type == "stream"]
    shown = [item for output in cell.outputs for item in output.get("data", {}).items()]
    return "\n".join(streams + [text for kind, text in shown if kind.startswith("text/")])


def has_image(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


@every_notebook
def test_is_valid_and_small(path):
    nbformat.validate(read(path))
    assert path.stat().st_size < 1_500_000


@every_notebook
def test_was_executed_in_order(path):
    cells = code(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert read(path).metadata.kernelspec.name == "python3"


@every_notebook
def test_has_no_errors_and_no_warnings_among_its_outputs(path):
    for cell in code(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


@every_notebook
def test_every_figure_has_alt_text_and_a_numbered_caption(path):
    chapter, number, cells = path.stem.split("_")[0].lstrip("0"), 0, read(path).cells
    for cell, below in zip(cells, cells[1:] + [None], strict=True):
        if cell.cell_type != "code" or not has_image(cell):
            continue
        number += 1
        assert has_image(cell) == 1, f"one figure a cell, so that it can have its own alt text:\n{cell.source}"
        assert len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")) >= 40, cell.source
        caption = f"(fig-{chapter}-{number})=\n**Figure {chapter}.{number}.** "
        assert below and below.source.startswith(caption), f"no {caption!r} below:\n{cell.source}"
    assert number > 0


@every_chapter
def test_every_claim_gets_one_verdict(path):
    text = prose(path)
    claims = re.search(r"\*\*Claims tested:\*\* (C\d+(?:, C\d+)*)", text).group(1).split(", ")
    boxes = re.findall(r"^```\{admonition\} Verdict on (C\d+): (.+)\n:class: (\w+) verdict$", text, re.MULTILINE)
    assert sorted(claim for claim, _, _ in boxes) == sorted(claims)
    assert len(boxes) == text.count("{admonition} Verdict on ")
    for claim, verdict, look in boxes:
        assert VERDICTS[verdict] == look, f"{claim}: {verdict}"


@every_chapter
def test_has_five_exercises_each_with_a_folded_solution(path):
    text = prose(path)
    exercises = re.findall(r"^```\{exercise\}.*\n:label: (\S+)", text, re.MULTILINE)
    solutions = re.findall(r"^```\{solution\} (\S+)\n(?::label: \S+\n)?:class: dropdown$", text, re.MULTILINE)
    assert len(exercises) >= 5
    assert sorted(solutions) == sorted(exercises)
    assert text.count("{exercise}") == len(exercises) and text.count("{solution}") == len(solutions)


@every_notebook
def test_most_outputs_are_compared_and_every_check_is(path):
    cells = code(path)
    ignored = [cell for cell in cells if "nbval-ignore-output" in cell.metadata.get("tags", [])]
    assert len(ignored) <= 0.4 * len(cells)
    for cell in ignored:
        assert not re.search(r"\bTrue\b", printed(cell)), f"a check whose result is not compared:\n{cell.source}"
    for cell in cells:
        skipped = {"nbval-skip", "raises-exception"} & set(cell.metadata.get("tags", []))
        assert not skipped and "NBVAL_" not in cell.source, cell.source


@every_notebook
def test_speaks_of_the_book_alone(path):
    for cell in read(path).cells:
        text = cell.source + "\n" + (printed(cell) if cell.cell_type == "code" else "")
        absolute_path = r"(?<![\w.:/<)}$])/[A-Za-z]+/\w"
        found = re.search(rf"TODO|FIXME|XXX| at 0x[0-9a-f]+|{absolute_path}", text)
        assert not found, f"{found.group()!r} in:\n{cell.source}"
