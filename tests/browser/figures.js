/* Labels of the figures of a page that stand over one another or are cut, in words. */
() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg.atlas-figure:not(.swatch), svg.atlas-plot")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")]
      .filter((text) => text.textContent.trim() && getComputedStyle(text).visibility !== "hidden");
    const labels = texts.map((text) => [text.textContent.replace(/\s+/g, " ").trim(), text.getBoundingClientRect()]);
    for (const [i, [name, a]] of labels.entries()) {
      const out = [frame.left - a.left, a.right - frame.right, frame.top - a.top, a.bottom - frame.bottom];
      if (frame.width && Math.max(...out) > 3) found.push(`${name} is cut`);
      for (const [other, b] of labels.slice(i + 1)) {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1.5 && high > 1.5 + 0.3 * Math.min(a.height, b.height)) found.push(`${name} over ${other}`);
      }
    }
  }
  return found;
}
