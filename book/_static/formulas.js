/* A formula that is wider than the page is marked, so that it shows that it can be scrolled; in a line of text, a full
   stop or a comma stays with the formula before it. */
addEventListener("load", () => window.MathJax?.startup?.promise?.then(() => {
  for (const formula of document.querySelectorAll("article span.math")) {
    const mark = /^[.,;:!?)\]]+/.exec(formula.nextSibling?.data ?? "");
    if (!mark) continue;
    const kept = document.createElement("span");
    kept.className = "kept";
    formula.replaceWith(kept);
    kept.append(formula, mark[0]);
    kept.nextSibling.data = kept.nextSibling.data.slice(mark[0].length);
  }
  const formulas = [...document.querySelectorAll("article .math")];
  const right = element => element.getBoundingClientRect().right;
  const fit = () => {
    const wide = formulas.map(formula => right(formula.querySelector("mjx-math") ?? formula) > right(formula) + 1);
    formulas.forEach((formula, i) => {
      if (wide[i] === formula.classList.contains("wide")) return;
      formula.classList.toggle("wide");
      if (wide[i]) formula.tabIndex = 0;
      else formula.removeAttribute("tabindex");
    });
  };
  fit();
  addEventListener("resize", fit);
}));
