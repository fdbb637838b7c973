/* Which technique fits: entries that answer every question that is not left open, with the reasons. Texts are set as text. No dependency, works from file://. */
"use strict";

(() => {
  const own = document.currentScript.src;
  const form = document.querySelector("[data-atlas-decide]");
  if (!form) return;
  const list = document.querySelector("ol.atlas-decided");
  const told = document.querySelector("[data-atlas-decided]");
  const MOST = 15;
  const make = (name, attributes, ...inside) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  };
  /* What an answer allows: who may not train takes what needs no training; "any" data and plain dense hardware always fit. */
  const may = { adaptation: ["Training-free", "Calibration", "Fine-tuning", "From scratch"] };
  const answers = (axis, wanted, has) => {
    if (axis === "adaptation") return has.some((term) => may.adaptation.indexOf(term) <= may.adaptation.indexOf(wanted) && may.adaptation.includes(term));
    if (axis === "data_kind") return has.includes(wanted) || has.includes("Any");
    if (axis === "stage") return has.includes(wanted) || has.includes("Both");
    if (axis === "support") return has.every((term) => term === wanted || term === "Dense");
    return has.includes(wanted);
  };

  const start = ({ axes, entries }) => {
    const show = () => {
      const wanted = [...form.elements].filter((field) => field.name && field.value).map((field) => [field.name, field.value]);
      const fitting = Object.entries(entries).filter(([, one]) => wanted.every(([axis, value]) => answers(axis, value, one.axes[axis] ?? [])));
      const rank = ([, one]) => (one.status === "Runs here" ? (one.saves.some((line) => /^(exact: )?\d/.test(line)) ? 0 : 1) : 2);
      fitting.sort((a, b) => rank(a) - rank(b) || a[1].name.localeCompare(b[1].name, "en"));
      list.replaceChildren(...(wanted.length ? fitting.slice(0, MOST) : []).map(([id, one]) => {
        const why = wanted.map(([axis]) => `${axes[axis].toLowerCase()}: ${(one.axes[axis] ?? []).join(", ").toLowerCase()}`);
        const item = make("li", {}, make("a", { href: new URL(`../techniques/${id}.html`, own) }, one.name), " ", make("span", { class: "atlas-chip" }, one.status.toLowerCase()), make("br", {}), one.summary);
        item.append(make("small", {}, why.join("; ")));
        if (one.saves.length) item.append(make("small", {}, `measured here: ${one.saves.join("; ")}`));
        if (one.not.length) item.append(make("small", {}, `not when: ${one.not[0]}`));
        return item;
      }));
      const cut = fitting.length > MOST ? `, the first ${MOST} of them shown` : "";
      told.textContent = !wanted.length ? "Answer a question." : fitting.length ? `${fitting.length} entries fit${cut}.` : "Nothing fits all of it: leave a question open.";
      const state = new URLSearchParams(wanted);
      try {
        history.replaceState(null, "", `${location.pathname}${wanted.length ? `?${state}` : ""}`);
      } catch {
        /* some browsers refuse this for file:// */
      }
    };
    const state = new URLSearchParams(location.search);
    for (const field of form.elements) if (field.name && [...field.options].some((o) => o.value === state.get(field.name))) field.value = state.get(field.name);
    form.addEventListener("input", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    show();
  };
  const script = make("script", { src: new URL("comparison.js", own) });
  script.addEventListener("load", () => start(window.atlasComparison));
  document.head.append(script);
})();
