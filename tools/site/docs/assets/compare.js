/* Entries side by side: the choice is in the address, the data in a script beside this one. Texts are set as text, never as HTML. No dependency, works from file://. */
"use strict";

(() => {
  const own = document.currentScript.src;
  const box = document.querySelector("[data-atlas-compare]");
  if (!box) return;
  const MOST = 4;
  const table = box.querySelector("table");
  const state = box.querySelector("[data-atlas-compare-state]");
  const input = box.querySelector("input");
  const make = (name, attributes = {}, ...inside) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  };
  const list = (items) => (items.length ? make("ul", {}, ...items.map((item) => make("li", {}, item))) : "");

  const start = ({ axes, entries }) => {
    let chosen = (new URLSearchParams(location.search).get("entries") ?? "").split(",").filter((id) => Object.hasOwn(entries, id));
    chosen = [...new Set(chosen)].slice(0, MOST);
    const byName = new Map(Object.entries(entries).map(([id, one]) => [one.name.toLowerCase(), id]));
    box.querySelector("datalist").append(...Object.values(entries).map((one) => make("option", { value: one.name })));
    input.addEventListener("change", () => {
      const id = byName.get(input.value.trim().toLowerCase()) ?? (Object.hasOwn(entries, input.value.trim()) ? input.value.trim() : undefined);
      if (id && !chosen.includes(id) && chosen.length < MOST) {
        chosen.push(id);
        input.value = "";
        show();
      } else {
        state.textContent = !id ? `There is no entry “${input.value}”.` : chosen.includes(id) ? "It stands there already." : `At most ${MOST} entries.`;
      }
    });

    /* One row: a heading and a cell for each entry; cells that are not all alike are marked. */
    const row = (title, cells, key) => {
      const told = cells.map((cell) => (typeof cell === "string" ? cell : cell.textContent));
      if (told.every((text) => !text)) return [];
      const differ = chosen.length > 1 && new Set(told).size > 1;
      const line = make("tr", key && differ ? { class: "differs" } : {}, make("th", { scope: "row" }, title));
      line.append(...cells.map((cell) => make("td", {}, cell || "–")));
      return [line];
    };
    const claims = (one) => list(one.claims.map((claim) => {
      const item = make("span", {}, claim.text, make("small", {}, [claim.said, claim.where].filter(Boolean).join(" · ")));
      if (claim.verdict !== "not attempted") item.append(make("small", { class: `atlas-verdict ${claim.verdict.replaceAll(" ", "-")}` }, claim.verdict + (claim.ours ? `, ours: ${claim.ours}` : "")));
      return item;
    }));

    const show = () => {
      const ones = chosen.map((id) => entries[id]);
      const head = make("tr", {}, make("td", {}));
      chosen.forEach((id) => {
        const away = make("button", { type: "button", "aria-label": `Take ${entries[id].name} away`, class: "atlas-away" }, "×");
        away.addEventListener("click", () => { chosen = chosen.filter((other) => other !== id); show(); });
        head.append(make("th", { scope: "col" }, make("a", { href: new URL(`../techniques/${id}.html`, own) }, entries[id].name), " ", away));
      });
      const body = make("tbody", {},
        ...row("In a sentence", ones.map((one) => one.summary)),
        ...row("Status", ones.map((one) => one.status), true),
        ...Object.entries(axes).flatMap(([axis, name]) => row(name, ones.map((one) => (one.axes[axis] ?? []).join(", ")), true)),
        ...row("Execution", ones.map((one) => one.execution ?? ""), true),
        ...row("When to use it", ones.map((one) => list(one.when))),
        ...row("When not to", ones.map((one) => list(one.not))),
        ...row("Limits", ones.map((one) => list(one.limits))),
        ...row("The papers claim", ones.map(claims)),
        ...row("Measured here: MACs saved", ones.map((one) => list(one.saves))),
        ...row("Results", ones.map((one) => list(one.results.map((result) => result.title)))));
      table.replaceChildren(make("thead", {}, head), body);
      table.hidden = !chosen.length;
      box.querySelector("figure")?.remove();
      const figure = curves(ones);
      if (figure) box.append(figure);
      state.textContent = chosen.length ? `${chosen.length} of at most ${MOST}` : "Choose two entries or more.";
      try {
        history.replaceState(null, "", `${location.pathname}${chosen.length ? `?${new URLSearchParams({ entries: chosen.join(",") })}` : ""}`);
      } catch {
        /* some browsers refuse this for file:// */
      }
    };

    /* Curves of entries that share a benchmark, in per cent of their own baselines. */
    const curves = (ones) => {
      const shared = ones.flatMap((one) => [...new Set(one.results.map((result) => result.benchmark))]).filter((id, i, all) => id && all.indexOf(id) !== i);
      const drawn = ones.map((one) => one.results.filter((result) => shared.includes(result.benchmark)));
      const points = drawn.flat().flatMap((result) => result.points);
      if (!points.length) return null;
      const [width, height, left, bottom] = [760, 380, 56, 44];
      const most = Math.max(105, ...points.map(([macs]) => macs));
      const least = Math.max(70, Math.min(97, ...points.map(([, , kept]) => kept)) - 1);
      const top = Math.max(101, ...points.map(([, , kept]) => kept + 1));
      const x = (macs) => left + ((width - left - 12) * macs) / most;
      const y = (kept) => 14 + ((height - bottom - 14) * (top - Math.max(kept, least))) / (top - least);
      const svg = (name, attributes, ...inside) => {
        const element = document.createElementNS("http://www.w3.org/2000/svg", name);
        for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
        element.append(...inside);
        return element;
      };
      const label = "Quality kept against MACs, in per cent of each baseline";
      const root = svg("svg", { class: "atlas-figure", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, "font-size": 13 });
      for (let i = 0; i <= 4; i++) {
        const [macs, kept] = [(most * i) / 4, least + ((top - least) * i) / 4];
        root.append(svg("text", { class: "tick", x: x(macs), y: height - bottom + 16, "text-anchor": i === 4 ? "end" : "middle" }, macs.toFixed(0)));
        root.append(svg("path", { class: "grid", d: `M${left} ${y(kept)}H${width - 12}` }));
        root.append(svg("text", { class: "tick", x: left - 6, y: y(kept) + 4, "text-anchor": "end" }, kept.toFixed(0)));
      }
      root.append(svg("text", { class: "label", x: width / 2, y: height - 8, "text-anchor": "middle" }, "MACs, % of the baseline's"));
      root.append(svg("text", { class: "label", x: 4, y: 11 }, "quality kept, %"));
      drawn.forEach((results, i) => {
        for (const result of results) {
          const group = svg("g", { class: `series technique-${i + 1}` });
          group.append(svg("polyline", { class: "path", points: result.points.map(([macs, , kept]) => `${x(macs)},${y(kept)}`).join(" ") }));
          for (const [macs, , kept, setting] of result.points) {
            group.append(svg("circle", { cx: x(macs), cy: y(kept), r: 4.4 }, svg("title", {}, `${ones[i].name}, ${setting}: ${kept} % of the quality at ${macs} % of the MACs (${result.title})`)));
          }
          root.append(group);
        }
      });
      const key = make("ul", { class: "atlas-swatches" }, ...ones.map((one, i) => {
        const mark = svg("svg", { class: "atlas-figure swatch", viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("g", { class: `series technique-${i + 1}` }, svg("circle", { cx: 8, cy: 8, r: 5 })));
        return make("li", {}, mark, ` ${one.name}`);
      }));
      return make("figure", { class: "atlas-overview", tabindex: 0 }, root, key, make("figcaption", {}, `${label}, where they share a benchmark: ${[...new Set(shared)].join(", ").replaceAll("-", " ")}. Tasks differ; their pages say which.`));
    };
    show();
  };

  const script = make("script", { src: new URL("comparison.js", own) });
  script.addEventListener("load", () => start(window.atlasComparison));
  script.addEventListener("error", () => (state.textContent = "The data could not be loaded."));
  document.head.append(script);
})();
