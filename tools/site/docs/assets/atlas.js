/* What the pages do beyond HTML: copy buttons, the figure of relations, and cards on a phone. No dependency, works from file://. */
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
})();
