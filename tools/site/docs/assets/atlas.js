/* What the pages do beyond HTML: copy buttons, the figure of relations, the filters of tables, BibTeX of ticked entries and cards on a phone. No dependency, works from file://. */
"use strict";

(() => {
  const own = document.currentScript.src;
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

  /* Cells of wide tables and of claims by the name of their column, for the cards of a phone. */
  for (const table of document.querySelectorAll("table.atlas-table:not(.atlas-index)")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    if (names.length < 4 && !table.matches(".atlas-claims, .atlas-relations")) continue;
    table.classList.add("atlas-cardlike");
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, i) => cell.localName === "td" && cell.setAttribute("data-label", names[i]));
    }
  }

  /* Boxes that scroll, which the theme puts around plain tables, can be reached by the keyboard. */
  const reachable = () => document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((box) => { box.tabIndex = 0; });
  new MutationObserver(reachable).observe(document.body, { childList: true, subtree: true });
  reachable();

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

  /* Entries that are ticked give one file of BibTeX. Its records are a script, which pages opened from disk can load too. */
  const button = document.querySelector("[data-atlas-bib]");
  const ticks = !button ? [] : rows.map((row) => {
    const tick = Object.assign(document.createElement("input"), { type: "checkbox" });
    tick.setAttribute("aria-label", `Tick ${row.querySelector("th a").textContent}`);
    const label = Object.assign(document.createElement("label"), { className: "atlas-tick" });
    label.append(tick);
    row.querySelector("th").prepend(label);
    tick.addEventListener("change", () => {
      const ticked = ticks.filter((one) => one.checked).length;
      button.disabled = !ticked;
      button.textContent = `BibTeX of the ticked entries${ticked ? ` (${ticked})` : ""}`;
    });
    return tick;
  });
  const records = () => new Promise((done, fail) => {
    if (window.atlasBibliography) return done(window.atlasBibliography);
    const script = Object.assign(document.createElement("script"), { src: new URL("bibliography.js", own) });
    Object.assign(script, { onload: () => done(window.atlasBibliography), onerror: fail });
    document.head.append(script);
  });
  button?.addEventListener("click", async () => {
    const known = await records();
    const keys = new Set(rows.flatMap((row, i) => (ticks[i].checked ? row.dataset.papers.split(" ") : [])));
    const text = [...keys].filter((key) => key in known).sort().map((key) => known[key]).join("\n");
    const link = Object.assign(document.createElement("a"), { download: "atlas.bib" });
    link.href = URL.createObjectURL(new Blob([text], { type: "application/x-bibtex" }));
    link.click();
    URL.revokeObjectURL(link.href);
  });

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
