/* What the pages do beyond HTML: copy buttons, the figure of relations, and the filters of tables. No dependency, works from file://. */
"use strict";

(() => {
  const announce = (button, word) => {
    const before = button.textContent;
    button.textContent = word;
    setTimeout(() => (button.textContent = before), 1600);
  };

  /* The clipboard API is absent on plain http and may be refused: then select the text and use the old command. */
  const copy = async (pre) => {
    try {
      await navigator.clipboard.writeText(pre.textContent);
      return true;
    } catch {
      getSelection().selectAllChildren(pre);
      const done = document.execCommand("copy");
      getSelection().removeAllRanges();
      return done;
    }
  };

  for (const button of document.querySelectorAll("[data-atlas-copy]")) {
    button.addEventListener("click", async () => {
      const done = await copy(button.parentElement.querySelector("pre"));
      announce(button, done ? "Copied" : "Press Ctrl+C");
    });
  }

  /* The theme gives its search dialog no name. */
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

  /* The figure of relations: an entry that is pointed at or focused shows its own curves alone; keys switch types off. */
  const graph = document.querySelector("svg.atlas-graph");
  if (graph) {
    const curves = [...graph.querySelectorAll("[data-ends]")].map((edge) => [edge, edge.dataset.ends.split(" ")]);
    const nodes = [...graph.querySelectorAll("[data-node]")];
    const choose = (id) => {
      const near = new Set([id]);
      for (const [edge, ends] of curves) {
        edge.classList.toggle("on", ends.includes(id));
        if (ends.includes(id)) ends.forEach((end) => near.add(end));
      }
      for (const node of nodes) node.classList.toggle("on", near.has(node.dataset.node));
      graph.classList.toggle("chosen", Boolean(id));
    };
    for (const node of nodes) {
      for (const start of ["mouseenter", "focus"]) node.addEventListener(start, () => choose(node.dataset.node));
      for (const end of ["mouseleave", "blur"]) node.addEventListener(end, () => choose(""));
    }
    for (const key of document.querySelectorAll("[data-atlas-edges]")) {
      key.addEventListener("click", () => {
        const shown = key.getAttribute("aria-pressed") !== "true";
        key.setAttribute("aria-pressed", shown);
        for (const edge of graph.querySelectorAll(`.edge.${key.dataset.atlasEdges}`)) edge.classList.toggle("hidden", !shown);
      });
    }
  }

  const form = document.querySelector("[data-atlas-filter]");
  if (!form) return;
  const rows = [...document.querySelectorAll("table.atlas-index tbody tr")];
  const count = document.querySelector("[data-atlas-count]");
  const clear = document.querySelector("[data-atlas-clear]");
  const fields = [...form.elements].filter((field) => field.name);

  const matches = (row, field) => {
    const wanted = field.value.trim().toLowerCase();
    if (!wanted) return true;
    if (field.name === "text") return wanted.split(/\s+/).every((word) => row.dataset.text.includes(word));
    return (row.dataset[field.name] || "").split(" ").includes(wanted);
  };

  const apply = () => {
    for (const row of rows) row.hidden = !fields.every((field) => matches(row, field));
    for (const select of fields.filter((field) => field.tagName === "SELECT")) {
      const others = rows.filter((row) => fields.every((field) => field === select || matches(row, field)));
      for (const option of select.options) {
        if (!option.value) continue;
        const found = others.filter((row) => (row.dataset[select.name] || "").split(" ").includes(option.value)).length;
        option.textContent = `${option.dataset.label} (${found})`;
        option.disabled = !found && option.value !== select.value;
      }
    }
    const shown = rows.filter((row) => !row.hidden).length;
    const noun = form.dataset.atlasFilter;
    count.textContent = shown === rows.length ? `${shown} ${noun}` : `${shown} of ${rows.length} ${noun}`;
    const state = new URLSearchParams(fields.filter((f) => f.value.trim()).map((f) => [f.name, f.value.trim()]));
    clear.hidden = ![...state].length;
    const url = `${location.pathname}${[...state].length ? `?${state}` : ""}${location.hash}`;
    try {
      history.replaceState(null, "", url);
    } catch {
      /* some browsers refuse this for file:// */
    }
  };

  const read = () => {
    const state = new URLSearchParams(location.search);
    for (const field of fields) field.value = state.get(field.name) || "";
    apply();
  };

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  clear.addEventListener("click", () => {
    for (const field of fields) field.value = "";
    apply();
    fields[0].focus();
  });
  read();
})();
