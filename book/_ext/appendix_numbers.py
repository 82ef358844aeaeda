"""Numbers of the appendices as the book speaks of them: Exercise C.1, Proposition A.2, equation (D.3).

Sphinx numbers what stands in a numbered chapter by that chapter, and all the rest in one row from page to page. An
appendix has a letter in place of a number, which its file begins with.
"""

import re

APPENDIX = re.compile(r"notebooks/([A-Z])_")


def by_letter(app, env):
    for page, kinds in env.toc_fignumbers.items():
        letter = APPENDIX.match(page)
        for numbers in kinds.values() if letter else []:
            in_order = sorted(numbers, key=numbers.get)
            numbers.update((name, (letter[1], i)) for i, name in enumerate(in_order, start=1))
    return []


def setup(app):
    app.connect("env-get-updated", by_letter, priority=900)  # Sphinx itself gives the numbers at 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
