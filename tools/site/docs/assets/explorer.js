/* Tables of entries, papers and claims: filters with live counts, quick filters, cards, and what becomes of ticked rows. The state is in the address. No dependency, works from file://. */
"use strict";

(() => {
  const own = document.currentScript.src;
  const form = document.querySelector("[data-atlas-filter]");
  if (!form) return;
  const noun = form.dataset.atlasFilter;
  const table = document.querySelector("table.atlas-index");
  const body = table.tBodies[0];
  const count = document.querySelector("[data-atlas-count]");
  const clear = document.querySelector("[data-atlas-clear]");
  const cards = document.querySelector("[data-atlas-cards]");
  const fields = [...form.elements].filter((field) => field.name);
  const selects = fields.filter((field) => field.localName === "select");
  const text = fields.find((field) => field.name === "text");
  const quick = [...document.querySelectorAll("[data-atlas-quick]")].map((button) => [button, new URLSearchParams(button.dataset.atlasQuick)]);

  /* Terms of a row on each choice, read once: 2,000 rows are filtered and counted in one pass. */
  const rows = [...body.rows].map((row) => ({
    row,
    text: row.dataset.text ?? "",
    terms: selects.map((select) => (row.dataset[camel(select.name)] ?? "").split(" ").filter(Boolean)),
  }));
  function camel(name) {
    return name.replace(/-(.)/g, (_, letter) => letter.toUpperCase());
  }
  const options = selects.map((select) => new Map([...select.options].filter((o) => o.value).map((o) => [o.value, o])));

  const apply = () => {
    const words = text.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.map((select) => select.value);
    const counts = selects.map(() => new Map());
    let shown = 0;
    for (const { row, text: said, terms } of rows) {
      const missed = words.every((word) => said.includes(word)) ? [] : [-1];
      for (let i = 0; i < wanted.length && missed.length < 2; i++) {
        if (wanted[i] && !terms[i].includes(wanted[i])) missed.push(i);
      }
      row.hidden = missed.length > 0;
      shown += !missed.length;
      if (missed.length > 1 || missed[0] === -1) continue;
      /* A choice counts what the other choices leave. */
      for (let i = missed.length ? missed[0] : 0; i < (missed.length ? missed[0] + 1 : wanted.length); i++) {
        for (const term of terms[i]) counts[i].set(term, (counts[i].get(term) ?? 0) + 1);
      }
    }
    options.forEach((known, i) => {
      for (const [value, option] of known) {
        const found = counts[i].get(value) ?? 0;
        option.textContent = `${option.dataset.label} (${found})`;
        option.disabled = !found && value !== wanted[i];
      }
    });
    for (const [button, chosen] of quick) button.setAttribute("aria-pressed", isChosen(chosen));
    count.textContent = shown === rows.length ? `${shown} ${noun}` : `${shown} of ${rows.length} ${noun}`;
    clear.hidden = !fields.some((field) => field.value.trim());
    remember();
  };

  const isChosen = (chosen) => [...chosen].every(([name, value]) => selects.find((s) => s.name === name)?.value === value);
  for (const [button, chosen] of quick) {
    button.addEventListener("click", () => {
      const off = isChosen(chosen);
      for (const [name, value] of chosen) {
        const select = selects.find((one) => one.name === name);
        if (select) select.value = off ? "" : value;
      }
      apply();
    });
  }

  const ticked = () => rows.filter(({ tick }) => tick?.checked).map(({ row }) => row);
  const remember = () => {
    const state = new URLSearchParams(fields.filter((f) => f.value.trim()).map((f) => [f.name, f.value.trim()]));
    if (table.classList.contains("atlas-as-cards")) state.set("view", "cards");
    if (table.dataset.sort) state.set("sort", table.dataset.sort);
    const url = `${location.pathname}${[...state].length ? `?${state}` : ""}${location.hash}`;
    try {
      history.replaceState(null, "", url);
    } catch {
      /* some browsers refuse this for file:// */
    }
  };
  const asCards = (on) => {
    table.classList.toggle("atlas-as-cards", on);
    cards.setAttribute("aria-pressed", on);
  };
  cards.addEventListener("click", () => {
    asCards(!table.classList.contains("atlas-as-cards"));
    remember();
  });
  const heads = [...table.tHead.rows[0].cells];
  for (const row of body.rows) {
    [...row.cells].forEach((cell, i) => i && cell.setAttribute("data-label", heads[i].textContent.trim()));
  }
  table.addEventListener("atlas-sorted", remember);

  /* Ticked rows are compared, or taken away as BibTeX or CSV. What they need is a script, which pages opened from disk can load too. */
  const takes = [...document.querySelectorAll("[data-atlas-take]")];
  const MOST = 4;
  const told = () => {
    const number = ticked().length;
    for (const button of takes) {
      const compares = button.dataset.atlasTake === "compare";
      button.disabled = compares ? number < 2 || number > MOST : !number;
      button.textContent = compares && number > MOST ? `Compare (at most ${MOST})` : `${button.dataset.label}${number ? ` (${number})` : ""}`;
    }
  };
  for (const one of takes.length ? rows : []) {
    const tick = Object.assign(document.createElement("input"), { type: "checkbox" });
    tick.setAttribute("aria-label", `Tick ${one.row.querySelector("th a").textContent}`);
    const label = Object.assign(document.createElement("label"), { className: "atlas-tick" });
    label.append(tick);
    one.row.querySelector("th").prepend(label);
    one.tick = tick;
    tick.addEventListener("change", told);
  }
  const save = (name, type, content) => {
    const link = Object.assign(document.createElement("a"), { download: name });
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const records = () => new Promise((done, fail) => {
    if (window.atlasBibliography) return done(window.atlasBibliography);
    const script = Object.assign(document.createElement("script"), { src: new URL("bibliography.js", own) });
    Object.assign(script, { onload: () => done(window.atlasBibliography), onerror: fail });
    document.head.append(script);
  });
  const take = {
    compare: (chosen) => {
      location.href = new URL(`../compare.html?${new URLSearchParams({ entries: chosen.map((row) => row.dataset.id).join(",") })}`, own);
    },
    bib: async (chosen) => {
      const known = await records();
      const keys = new Set(chosen.flatMap((row) => row.dataset.papers.split(" ")));
      save("atlas.bib", "application/x-bibtex", [...keys].filter((key) => key in known).sort().map((key) => known[key]).join("\n"));
    },
    csv: (chosen) => {
      const names = ["id", "name", ...selects.map((select) => select.name), ...heads.slice(1).map((head) => head.textContent.trim())];
      const lines = chosen.map((row) => [
        row.dataset.id, row.querySelector("th a").textContent, ...selects.map((select) => row.dataset[camel(select.name)] ?? ""),
        ...[...row.cells].slice(1).map((cell) => cell.innerText.trim().replaceAll("\n", "; ")),
      ]);
      /* A sheet takes what begins with these for a formula. */
      const quote = (cell) => `"${(/^[=+@\t\r-]/.test(cell) ? `'${cell}` : cell).replaceAll('"', '""')}"`;
      save("atlas.csv", "text/csv", [names, ...lines].map((line) => line.map(quote).join(",")).join("\r\n") + "\r\n");
    },
  };
  for (const button of takes) button.addEventListener("click", () => take[button.dataset.atlasTake](ticked()));

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  clear.addEventListener("click", () => {
    for (const field of fields) field.value = "";
    apply();
    text.focus();
  });
  const state = new URLSearchParams(location.search);
  for (const field of fields) field.value = state.get(field.name) || "";
  asCards(state.get("view") === "cards");
  const more = form.querySelector("details");
  if (more) more.open = selects.some((select) => select.value && more.contains(select));
  if (state.get("sort")) table.dispatchEvent(new CustomEvent("atlas-sort", { detail: state.get("sort") }));
  apply();
})();
