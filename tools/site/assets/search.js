/* The search of the atlas: it takes the messages of the theme's search worker, in whose place it stands, and ranks by
   its own rules. A query that equals a name, an alias or a key comes first, then names that begin with it, contain it or
   are a letter or two away; then documents by the words that they share with it. British and American spellings are one. */
"use strict";

const atlasSearch = (() => {
  const EQUAL = 1000, EQUAL_KEY = 400, SAME_STEMS = 900, BEGINS = 400, CONTAINS = 200, NEAR = 350;
  const IN_NAME = 12, IN_KEY = 8, IN_TEXT = 3, IN_WORDS = 1;
  const MOST = 40;

  const fold = (text) => text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  const split = (text) => fold(text).match(/[\p{L}\p{N}]+/gu) || [];

  /* One spelling of a word: the American one. Words that no American writes so ("noize") are folded alike everywhere. */
  const american = (word) => word
    .replace(/is(e|es|ed|er|ers|ing|ation|ations)$/, "iz$1")
    .replace(/ys(e|es|ed|er|ers|ing)$/, "yz$1")
    .replace(/(...)our/, "$1or")
    .replace(/(..)tre(s?)$/, "$1ter$2")
    .replace(/(.)ll(ed|ing|er|ers)$/, "$1l$2")
    .replace(/(en)ce(s?)$/, "$1se$2")
    .replace(/ogue(s?)$/, "og$1")
    .replace(/^grey/, "gray")
    .replace(/^artef/, "artif");

  const stems = new Map();
  const stem = (word) => {
    if (!stems.has(word)) {
      const cut = american(word).replace(/(.{3})(ations?|ings?|ers?|ed|es|s|e)$/, "$1");
      stems.set(word, cut.replace(/([bdfgmnprt])\1$/, "$1"));
    }
    return stems.get(word);
  };

  /* Steps from one word to another: a letter dropped, added, changed, or swapped with its neighbour; `most` + 1 if more. */
  const steps = (a, b, most) => {
    if (Math.abs(a.length - b.length) > most) return most + 1;
    let older = [], old = Array.from({ length: b.length + 1 }, (_, j) => j);
    for (let i = 1; i <= a.length; i++) {
      const row = [i];
      let best = i;
      for (let j = 1; j <= b.length; j++) {
        let d = Math.min(old[j] + 1, row[j - 1] + 1, old[j - 1] + (a[i - 1] !== b[j - 1]));
        if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) d = Math.min(d, older[j - 2] + 1);
        row.push(d);
        if (d < best) best = d;
      }
      if (best > most) return most + 1;
      older = old;
      old = row;
    }
    return old[b.length];
  };
  const allowed = (word) => (word.length < 4 ? 0 : word.length < 9 ? 1 : 2);

  const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const marked = (text, hit) => text.split(/([\p{L}\p{N}]+)/u)
    .map((part, i) => (i % 2 && hit(part) ? `<mark data-md-highlight>${escaped(part)}</mark>` : escaped(part))).join("");

  return ({ docs }) => {
    const places = new Map(); /* stem -> Map of document -> weight of the best field that holds it */
    const known = new Map(); /* word, in its American spelling -> its stem */
    const put = (word, at, weight) => {
      const short = stem(word);
      known.set(american(word), short);
      if (!places.has(short)) places.set(short, new Map());
      const inside = places.get(short);
      if (!(inside.get(at) >= weight)) inside.set(at, weight);
    };
    const joined = (text) => split(text).map(american).join("");
    const named = docs.map((doc, at) => {
      const names = [doc.title, ...(doc.names || [])];
      for (const word of split(names.join(" "))) put(word, at, IN_NAME);
      for (const word of split((doc.keys || []).join(" "))) put(word, at, IN_KEY);
      for (const word of split(doc.text || "")) put(word, at, IN_TEXT);
      for (const word of split(doc.words || "")) put(word, at, IN_WORDS);
      return [
        ...names.map((name) => ({ whole: joined(name), short: split(name).map(stem).join(""), key: false })),
        ...(doc.keys || []).map((key) => ({ whole: joined(key), short: "", key: true })),
      ].filter((name) => name.whole);
    });

    /* Stems that a word of a query can mean -> how surely. */
    const meanings = (word, last) => {
      const found = new Map();
      const add = (short, sure) => found.set(short, Math.max(sure, found.get(short) || 0));
      if (places.has(stem(word))) add(stem(word), 1);
      word = american(word);
      if (word.length > 1 && (last || !found.size)) {
        for (const [other, short] of known) if (other.startsWith(word)) add(short, 0.6);
      }
      const most = allowed(word);
      if (!found.size && most) {
        for (const [other, short] of known) {
          const far = other.length < 3 ? 9 : steps(word, other, most);
          if (far <= most) add(short, 0.5 / far);
        }
      }
      return found;
    };

    const byName = (whole, short, at) => {
      let best = 0;
      for (const name of named[at]) {
        const most = Math.min(allowed(whole), allowed(name.whole));
        let score = 0;
        if (name.whole === whole) score = name.key ? EQUAL_KEY : EQUAL;
        else if (!name.key && name.short === short) score = SAME_STEMS;
        else if (whole.length > 2 && name.whole.startsWith(whole)) score = BEGINS * (0.5 + whole.length / name.whole.length);
        else if (whole.length > 3 && name.whole.includes(whole)) score = CONTAINS * (0.5 + whole.length / name.whole.length);
        else if (most) {
          const far = steps(whole, name.whole, most);
          if (far <= most) score = NEAR / far;
        }
        if (score > best) best = score;
      }
      return best;
    };

    return (text) => {
      const arxiv = /\b\d{4}\.\d{4,5}(?=v\d|\b)/.exec(text);
      const query = arxiv ? arxiv[0] : text;
      const asked = split(query);
      if (!asked.length) return { items: [], suggest: [] };
      const whole = asked.map(american).join(""), short = asked.map(stem).join("");
      const scores = new Map(), hits = new Set();
      asked.forEach((word, i) => {
        const best = new Map();
        for (const [meant, sure] of meanings(word, i === asked.length - 1)) {
          hits.add(meant);
          const inside = places.get(meant);
          const rare = Math.log(1 + docs.length / inside.size);
          for (const [at, weight] of inside) best.set(at, Math.max(best.get(at) || 0, sure * rare * weight));
        }
        for (const [at, score] of best) {
          const before = scores.get(at) || { sum: 0, words: [] };
          before.sum += score;
          before.words.push(word);
          scores.set(at, before);
        }
      });
      const found = docs.map((doc, at) => {
        const shared = scores.get(at) || { sum: 0, words: [] };
        const part = shared.words.length / asked.length;
        const score = (byName(whole, short, at) + shared.sum * part * part) * doc.weight / 10;
        return { doc, score, words: shared.words };
      }).filter(({ score }) => score > 0);
      found.sort((a, b) => b.score - a.score || (a.doc.location < b.doc.location ? -1 : 1));
      const hit = (word) => hits.has(stem(fold(word)));
      const items = found.slice(0, MOST).map(({ doc, score, words }) => [{
        location: doc.location,
        title: marked(doc.title, hit),
        text: marked(doc.text || "", hit),
        score,
        terms: Object.fromEntries(asked.map((word) => [word, words.includes(word) || score >= NEAR / 2])),
      }]);
      const began = found.map(({ doc }) => split(doc.title)).find((title) => asked.every((word, i) => (title[i] || "").startsWith(word)));
      return { items, suggest: began ? began.slice(0, asked.length) : [] };
    };
  };
})();

let atlasAsked = () => ({ items: [] });
addEventListener("message", ({ data: { type, data } }) => {
  if (type === 0) {
    atlasAsked = atlasSearch(data);
    postMessage({ type: 1 });
  } else if (type === 2) postMessage({ type: 3, data: atlasAsked(data) });
});
