/* Tables that sort, panels of which one is shown, and tasks of a figure. No dependency, works from file://. */
"use strict";

(() => {
  /* One panel of several: its button is pressed, and the address names it. Without a script all of them stand. */
  for (const group of document.querySelectorAll(".atlas-tabs")) {
    const buttons = [...group.querySelectorAll("[data-atlas-tab]")];
    const show = (chosen) => {
      for (const button of buttons) {
        button.setAttribute("aria-pressed", button === chosen);
        document.getElementById(button.dataset.atlasTab).hidden = button !== chosen;
      }
    };
    for (const button of buttons) button.addEventListener("click", () => show(button));
    if (buttons.length) show(buttons.find((one) => one.getAttribute("aria-pressed") === "true") ?? buttons[0]);
  }

  /* Scenarios of an entry: what stands under their headings, one at a time on a screen. A link to a place inside of one opens it. */
  const scenarios = document.querySelector("[data-atlas-scenarios]");
  if (scenarios) {
    const parts = new Map();
    for (const button of scenarios.querySelectorAll("button")) {
      const own = [];
      let one = document.getElementById(button.dataset.atlasScenario);
      for (; one && !(own.length && /^h[23]$/.test(one.localName)); one = one.nextElementSibling) own.push(one);
      parts.set(button, own);
    }
    const show = (chosen) => {
      for (const [button, own] of parts) {
        button.setAttribute("aria-pressed", button === chosen);
        for (const part of own) part.classList.toggle("atlas-off", button !== chosen);
      }
    };
    const follow = () => {
      const target = document.getElementById(location.hash.slice(1));
      const found = target && [...parts].find(([, own]) => own.some((part) => part.contains(target)));
      if (!found) return false;
      show(found[0]);
      target.scrollIntoView();
      return true;
    };
    for (const button of parts.keys()) {
      button.addEventListener("click", () => {
        show(button);
        try {
          history.replaceState(null, "", `#${button.dataset.atlasScenario}`);
        } catch {
          /* some browsers refuse this for file:// */
        }
      });
    }
    window.addEventListener("hashchange", follow);
    if (!follow()) show([...parts.keys()][0]);
  }

  /* The task of a benchmark: its curves, its front and its lines of the ranking alone. */
  const task = document.querySelector("[data-atlas-task]");
  task?.addEventListener("change", () => {
    for (const part of document.querySelectorAll("[data-group]")) {
      const shown = task.value === "all" || part.dataset.group === task.value;
      if (part.localName === "tr") part.hidden = !shown;
      else part.classList.toggle("hidden", !shown);
    }
    for (const front of document.querySelectorAll("[data-front]")) {
      front.classList.toggle("hidden", front.dataset.front !== task.value);
    }
  });

  /* Columns sort by their heading: numbers downward first, words upward. What has no value comes last. */
  const numeric = /^[-\u2212+]?[\d.,]+/;
  const valueOf = (cell) => {
    const text = cell.dataset.value ?? cell.textContent.trim();
    if (cell.dataset.value !== undefined) return text === "" ? null : Number(text);
    const found = numeric.exec(text);
    return found && cell.matches(".num") ? Number(found[0].replace("\u2212", "-").replaceAll(",", "")) : text.toLowerCase() || null;
  };
  const compare = (a, b, way) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en");
    return way * order;
  };
  for (const table of document.querySelectorAll("table[data-atlas-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    const sort = (column, down) => {
      for (const other of heads) other.removeAttribute("aria-sort");
      heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
      const keyed = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
      keyed.sort((a, b) => compare(a[0], b[0], down ? -1 : 1));
      table.tBodies[0].append(...keyed.map(([, row]) => row));
      table.dataset.sort = `${column}${down ? "-down" : "-up"}`;
      table.dispatchEvent(new Event("atlas-sorted"));
    };
    heads.forEach((head, column) => {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "atlas-sort" });
      button.append(...head.childNodes);
      head.append(button);
      const now = () => head.getAttribute("aria-sort");
      button.addEventListener("click", () => sort(column, head.matches(".num") ? now() !== "descending" : now() === "ascending"));
    });
    table.addEventListener("atlas-sort", ({ detail }) => {
      const [column, way] = detail.split("-");
      if (heads[column]) sort(Number(column), way === "down");
    });
  }
})();
