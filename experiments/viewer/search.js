"use strict";
// Search of latents by a token, a text or a pattern, run on the contexts that the page has of each.

const MODES = ["token", "text", "pattern"];
let mostSteps = MOST_STEPS;

// {usesActs, find}, where find(window, acts) gives the matches in a context. Throws PatternError.
function finderOf(mode, query) {
  if (mode === "pattern") {
    const pattern = compilePattern(query);
    const budget = {
      steps: mostSteps,
      message: `stopped after ${mostSteps.toLocaleString("en")} steps: make the pattern shorter`,
    };
    return {usesActs: pattern.usesActs, find: (window, acts) => matches(pattern, idsOf(window), acts, budget)};
  }
  const wanted = query.toLowerCase();
  if (mode === "token") {
    const isWanted = DATA.pieces.map((piece) => piece.trim().toLowerCase() === wanted.trim());
    return {
      usesActs: false,
      find: (window) => [...idsOf(window)].flatMap((id, i) => (isWanted[id] ? [[i, i + 1]] : [])),
    };
  }
  return {usesActs: false, find: (window) => textMatches(idsOf(window), wanted)};
}

// The tokens in which a text lies, wherever it begins.
function textMatches(ids, wanted) {
  const ends = [],
    found = [];
  let text = "";
  for (const id of ids) ends.push((text += pieceOf(id).toLowerCase()).length);
  for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
    const last = ends.findIndex((end) => end >= at + wanted.length);
    found.push([ends.findIndex((end) => end > at), last + 1]);
  }
  return found;
}

// The matches in every context of a latent.
function hitsOf(finder, id, known) {
  const acts = actsOn(id, id);
  return contextsOf(id).map(({window}, slot) => {
    const own = acts.subarray(slot * DATA.window, (slot + 1) * DATA.window);
    if (finder.usesActs) return finder.find(window, own);
    if (!known.has(window)) known.set(window, finder.find(window, null));
    return known.get(window);
  });
}

// {rows, message}: latents with a match, those first whose activation lies most on matches. A pattern that takes too
// long, or cannot be read, has a message.
function search(mode, query) {
  const rows = [],
    known = new Map();
  let message = "",
    id = 0;
  try {
    const finder = finderOf(mode, query);
    for (; id < nLatents; id++) {
      const hits = hitsOf(finder, id, known),
        acts = actsOn(id, id);
      const count = hits.filter((found) => found.length).length;
      if (count) rows.push({id, count, n: hits.length, share: shareOn(hits, acts)});
    }
  } catch (error) {
    if (error instanceof RangeError) message = "the pattern is nested too deeply";
    else if (error instanceof PatternError) message = error.message;
    else throw error;
    if (id) message += ` (${id} of ${nLatents} latents were searched)`;
  }
  rows.sort((a, b) => b.share - a.share || b.count / b.n - a.count / a.n || a.id - b.id);
  return {rows, message};
}

// The share of a latent's activation on its contexts that lies on the matches.
function shareOn(hits, acts) {
  let on = 0,
    all = 0;
  for (const act of acts) all += act;
  hits.forEach((found, slot) => {
    for (const [first, end] of found) {
      for (let place = first; place < end; place++) on += acts[slot * DATA.window + place];
    }
  });
  return all ? on / all : 0;
}
