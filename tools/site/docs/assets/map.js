/* The map of the home page: panels of its places, layers to colour it by, and both as files. The layer and the place are in the address. No dependency, works from file://. */
"use strict";

(() => {
  const map = document.querySelector("table.atlas-map");
  const place = document.querySelector("[data-atlas-place]");
  if (!map || !place) return;
  const layer = document.querySelector("[data-atlas-layer]");
  const cells = [...map.querySelectorAll("[data-row]")];
  const written = new Map(cells.map((cell) => [cell, [...cell.childNodes]]));
  const steps = ["heat-1", "heat-2", "heat-3", "heat-4"];
  const before = new Map(cells.map((cell) => [cell, cell.className]));
  const named = new Map(cells.map((cell) => [cell, cell.getAttribute("aria-label") ?? cell.title]));
  let chosen = null;

  const remember = () => {
    const state = new URLSearchParams();
    if (layer.value !== "entries") state.set("layer", layer.value);
    if (chosen) state.set("place", `${chosen.dataset.row},${chosen.dataset.column}`);
    try {
      history.replaceState(null, "", `${location.pathname}${[...state].length ? `?${state}` : ""}${location.hash}`);
    } catch {
      /* some browsers refuse this for file:// */
    }
  };

  /* A place opens its panel; the one that is open already leads on, as every place does without a script. */
  const open = (cell, focus) => {
    chosen?.removeAttribute("aria-current");
    chosen = cell;
    const panel = document.querySelector(`template[data-panel="${cell.dataset.row} ${cell.dataset.column}"]`);
    const shut = Object.assign(document.createElement("button"), { type: "button", className: "atlas-away", textContent: "×" });
    shut.setAttribute("aria-label", "Close");
    shut.addEventListener("click", () => {
      place.hidden = true;
      chosen = null;
      cell.removeAttribute("aria-current");
      cell.focus();
      remember();
    });
    place.replaceChildren(shut, panel.content.cloneNode(true));
    place.hidden = false;
    cell.setAttribute("aria-current", "true");
    if (focus) place.querySelector("a, button").focus();
    remember();
  };
  for (const cell of cells) {
    if (cell.matches(".empty")) {
      cell.tabIndex = 0;
      cell.setAttribute("role", "button");
      cell.setAttribute("aria-label", named.get(cell));
    }
    cell.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      open(cell, event.detail === 0);
    });
    cell.addEventListener("keydown", (event) => {
      if (cell.matches(".empty") && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        open(cell, true);
      }
      const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
      if (across === undefined) return;
      event.preventDefault();
      const box = cell.closest("td");
      const row = map.rows[box.parentElement.rowIndex + down];
      row?.cells[box.cellIndex + across]?.querySelector("[data-row]")?.focus();
    });
  }

  const value = (cell) => cell.dataset[layer.value] ?? "";
  const colour = () => {
    const most = Math.max(1, ...cells.map((cell) => Number(value(cell))));
    for (const cell of cells) {
      if (layer.value === "entries") {
        cell.className = before.get(cell);
        cell.setAttribute("aria-label", named.get(cell));
        cell.replaceChildren(...written.get(cell));
        continue;
      }
      const number = Number(value(cell));
      cell.classList.remove(...steps, "runs");
      if (value(cell) !== "" && number > 0) cell.classList.add(steps[Math.min(3, Math.floor((4 * number) / (most + 1e-9)))]);
      const said = document.createElement("span");
      said.textContent = value(cell) === "" ? "–" : value(cell) === "0" ? "·" : value(cell);
      cell.replaceChildren(said);
      const place = named.get(cell).split(":")[0];
      cell.setAttribute("aria-label", `${place}: ${value(cell) === "" ? "not known" : value(cell)}, ${layer.selectedOptions[0].textContent}`);
    }
    remember();
  };
  layer.addEventListener("change", colour);

  const save = (name, type, content) => {
    const link = Object.assign(document.createElement("a"), { download: name });
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const heads = [...map.tHead.rows[0].cells].slice(1).map((head) => head.textContent.trim());
  const drawn = () => {
    const [wide, high, left, top] = [86, 34, 150, 60];
    const escape = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
    const parts = heads.map((head, i) => `<text x="${left + wide * i + wide / 2}" y="${top - 10}" text-anchor="middle">${escape(head)}</text>`);
    [...map.tBodies[0].rows].forEach((row, j) => {
      parts.push(`<text x="${left - 8}" y="${top + high * j + 21}" text-anchor="end">${escape(row.cells[0].textContent.trim())}</text>`);
      [...row.querySelectorAll("[data-row]")].forEach((cell, i) => {
        const style = getComputedStyle(cell);
        parts.push(`<rect x="${left + wide * i + 1}" y="${top + high * j + 1}" width="${wide - 2}" height="${high - 2}" rx="3" fill="${style.backgroundColor}" stroke="#8886"/>`);
        parts.push(`<text x="${left + wide * i + wide / 2}" y="${top + high * j + 21}" text-anchor="middle" fill="${style.color}">${escape(value(cell))}</text>`);
      });
    });
    const size = `${left + wide * heads.length + 10} ${top + high * map.tBodies[0].rows.length + 10}`;
    return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size}" font-family="sans-serif" font-size="11"><title>${escape(layer.selectedOptions[0].textContent)}</title>${parts.join("")}</svg>\n`;
  };
  for (const button of document.querySelectorAll("[data-atlas-export]")) {
    button.addEventListener("click", () => {
      if (button.dataset.atlasExport === "svg") return save("atlas-map.svg", "image/svg+xml", drawn());
      const places = cells.map((cell) => ({ relation: cell.dataset.row, location: cell.dataset.column, value: value(cell) === "" ? null : Number(value(cell)) }));
      save("atlas-map.json", "application/json", `${JSON.stringify({ layer: layer.value, title: layer.selectedOptions[0].textContent, places }, null, 1)}\n`);
    });
  }

  const state = new URLSearchParams(location.search);
  if ([...layer.options].some((option) => option.value === state.get("layer"))) layer.value = state.get("layer");
  if (layer.value !== "entries") colour();
  const [row, column] = (state.get("place") ?? "").split(",");
  const there = cells.find((cell) => cell.dataset.row === row && cell.dataset.column === column);
  if (there) open(there, false);
})();
