/* Flipbooks (diffutils.widgets) in a built page: no kernel, no library, no other host.
 *
 * A notebook stores its widgets as JSON: their state in one script element of the page, and in another, at the place
 * where the widget was shown, its id. This builds what flipbooks are made of: boxes, a slider over named values, pages
 * of HTML, a stack that shows one of them, and the link between the slider and the stack.
 */
"use strict";

(() => {
  const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
  const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';

  function start() {
    const stored = document.querySelector(STATE);
    if (!stored) return;
    const models = JSON.parse(stored.textContent).state;
    const listeners = {}; // model id -> functions of its state
    const model = (reference) => models[reference.replace("IPY_MODEL_", "")];

    function set(reference, key, value) {
      const changed = model(reference);
      if (changed.state[key] === value) return;
      changed.state[key] = value;
      (listeners[reference] || []).forEach((update) => update(changed.state));
    }

    function listen(reference, update) {
      (listeners[reference] ||= []).push(update);
      update(model(reference).state);
    }

    const element = (tag, name, attributes = {}) =>
      Object.assign(document.createElement(tag), { className: name, ...attributes });

    const views = {
      VBoxModel(reference, state) {
        const box = element("div", "flipbook");
        box.append(...state.children.map(view));
        return box;
      },
      SelectionSliderModel(reference, { description, _options_labels: labels, index }) {
        const row = element("label", "flipbook-slider");
        const name = element("span", "flipbook-name", { textContent: description });
        const slider = element("input", "", { type: "range", min: 0, max: labels.length - 1, step: 1 });
        slider.value = index; // once the range is known
        const value = element("output", "flipbook-value");
        slider.addEventListener("input", () => set(reference, "index", Number(slider.value)));
        listen(reference, (state) => {
          slider.value = state.index;
          slider.setAttribute("aria-valuetext", labels[state.index]);
          value.textContent = labels[state.index];
        });
        row.append(name, slider, value);
        return row;
      },
      StackModel(reference, state) {
        const pages = state.children.map(view);
        const stack = element("div", "flipbook-pages");
        stack.setAttribute("aria-live", "polite");
        stack.append(...pages);
        listen(reference, (now) => pages.forEach((page, i) => (page.hidden = i !== now.selected_index)));
        return stack;
      },
      HTMLModel(reference, { value }) {
        return element("div", "", { innerHTML: value });
      },
    };

    function view(reference) {
      const { model_name: name, state } = model(reference);
      if (!views[name]) throw new Error(`flipbook.js knows no ${name}`);
      return views[name](reference, state);
    }

    for (const { model_name: name, state } of Object.values(models)) {
      if (name !== "LinkModel" && name !== "DirectionalLinkModel") continue;
      const [[source, from], [target, to]] = [state.source, state.target];
      listen(source, (now) => set(target, to, now[from]));
      if (name === "LinkModel") listen(target, (now) => set(source, from, now[to]));
    }
    for (const place of document.querySelectorAll(VIEW)) {
      place.after(view(JSON.parse(place.textContent).model_id));
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
