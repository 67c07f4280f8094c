"use strict";
// The views of SAEs: trees, lists, search, and the page of a latent. All text is put in as text, never as HTML.
// What is shown follows from the hash of the URL alone: view, id, over, beside, tree, mode, q.

const MOST_ROWS = 300; // of a list, before a button shows more
const LEAD = 8; // tokens shown before a context
const OF_CONTEXTS = "Contexts by their largest activation; in front, the share of contexts with no larger one.";
const $ = (selector) => document.querySelector(selector);

// An element with attributes, of which functions are listeners, and children: elements or text.
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const say = (text) => ($("#status").textContent = text);
const percent = (share) => `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)}%`;
const rounded = (value) => (Number.isFinite(value) ? Number(value.toPrecision(3)).toString() : "–");

// ---- The state, in the hash ----

const stateOf = (hash) => Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
const hashWith = (changes) => {
  const kept = Object.entries({...stateOf(location.hash), ...changes}).filter(([, value]) => value !== "" && value !== null);
  return `#${new URLSearchParams(kept)}`;
};
const go = (changes) => (location.hash = hashWith(changes));
const modeOf = (state) => (MODES.includes(state.mode) ? state.mode : MODES[0]);
const shownLatent = () => latentOf(stateOf(location.hash).id || "");

// ---- Links to latents, over which the pointer lays their activations over the shown contexts ----

function latentLink(id, ...told) {
  return el(
    "a",
    {
      class: "latent", href: hashWith({id: nameOf(id), over: null, beside: null}), "data-id": id,
      mouseenter: () => layOver(id), mouseleave: () => layOver(pinned()),
      focus: () => layOver(id), blur: () => layOver(pinned()),
    },
    el("b", {}, nameOf(id)), " ", labels(id), ...told,
  );
}

const labels = (id) =>
  el("span", {class: "labels"}, labelsOf(id).map((token) => el("span", {class: "piece"}, shownPiece(token).trim() || "␣")));

const pinned = () => latentOf(stateOf(location.hash).over || "");

// ---- The side: a tree, a list, or what a search found ----

function drawSide(state) {
  const view = state.view || "tree";
  const parts = {tree: treeSide, list: listSide, search: searchSide}[view];
  if (!parts) return $("#side").replaceChildren();
  $("#side").replaceChildren(searchForm(state), ...parts(state));
}

function searchForm(state) {
  const form = el(
    "form",
    {class: "search", submit: (event) => {
      event.preventDefault();
      go({view: "search", mode: form.elements.mode.value, q: form.elements.q.value});
    }},
    el("select", {name: "mode", "aria-label": "kind of search"}, MODES.map((mode) => el("option", {value: mode, selected: mode === state.mode}, mode))),
    el("input", {name: "q", type: "search", value: state.q || "", placeholder: "search (press /)", "aria-label": "search", autocomplete: "off", spellcheck: "false"}),
    el("button", {}, "Go"),
  );
  return form;
}

function treeSide(state) {
  if (!treeViews.length) return [el("p", {}, "There is no tree: it takes two reference SAEs, or a Matryoshka SAE.")];
  const index = Math.min(Number(state.tree) || 0, treeViews.length - 1), tree = treeView(index);
  const select = el("select", {"aria-label": "tree", change: () => go({tree: select.value})},
    treeViews.map((one, i) => el("option", {value: i, selected: i === index}, one.name)));
  const families = tree.roots.filter((id) => tree.below[id]), alone = tree.roots.length - families.length;
  const open = new Set();
  for (let id = shownLatent(); id >= 0 && tree.parent[id] >= 0; ) open.add((id = tree.parent[id]));
  return [
    select,
    el("p", {class: "note"}, `${families.length} roots have latents below them; ${alone} latents stand alone (in the list). An edge has a weight above ${DATA.least_edge}.`),
    el("ul", {class: "tree", role: "tree"}, families.map((id) => treeNode(tree, id, open))),
  ];
}

function treeNode(tree, id, open) {
  const children = tree.children.get(id) || [];
  const node = el("li", {role: "treeitem", "data-node": id});
  const told = tree.parent[id] >= 0 ? [el("small", {title: "weight of the edge"}, rounded(tree.weight[id]))] : [];
  const toggle = children.length
    ? el("button", {type: "button", class: "toggle", tabindex: -1, "aria-label": `${children.length} children of ${nameOf(id)}`, click: () => expand(node, !node.querySelector("ul"))})
    : el("span", {class: "toggle"});
  node.append(toggle, latentLink(id, " ", ...told));
  node.expand = () => node.append(el("ul", {role: "group"}, children.map((child) => treeNode(tree, child, open))));
  node.isParent = children.length > 0;
  if (children.length) {
    node.setAttribute("aria-expanded", "false");
    if (open.has(id)) expand(node, true);
  }
  return node;
}

function expand(node, wanted) {
  if (!node.isParent || wanted === Boolean(node.querySelector("ul"))) return;
  if (wanted) node.expand();
  else node.querySelector("ul").remove();
  node.setAttribute("aria-expanded", String(wanted));
}

function listSide(state) {
  const sae = SAES.find((one) => one.name === state.sae) || SAES[0];
  const orders = {number: (a, b) => a - b, density: (a, b) => column("density")[b] - column("density")[a]};
  const order = orders[state.order] ? state.order : "number";
  const ids = Array.from({length: sae.n}, (_, i) => sae.first + i).sort(orders[order]);
  const choice = (name, values, own) => {
    const select = el("select", {"aria-label": name, change: () => go({[name]: select.value})},
      values.map((value) => el("option", {value, selected: value === own}, value)));
    return select;
  };
  return [
    el("p", {}, choice("sae", SAES.map((one) => one.name), sae.name), " by ", choice("order", Object.keys(orders), order)),
    el("p", {class: "note"}, `${sae.n} latents, L0 ${rounded(sae.l0)}, FVU ${sae.fvu === null ? "–" : rounded(sae.fvu)}, ${sae.dead} never on`),
    rows(ids, (id) => latentLink(id, " ", el("small", {}, percent(column("density")[id])))),
  ];
}

function searchSide(state) {
  if (!state.q) return [el("p", {class: "note"}, "Give a token, a text or a pattern.")];
  const {rows: found, message} = search(modeOf(state), state.q);
  return [
    message ? el("p", {class: "problem", role: "alert"}, message) : null,
    el("p", {class: "note", id: "found"}, `${found.length} latents with a match in their contexts, by the share of their activation on matches`),
    rows(found, (row) => latentLink(row.id, " ", el("small", {}, `${percent(row.share)}, ${row.count} of ${row.n}`))),
  ].filter(Boolean);
}

// A list that shows more on demand.
function rows(values, draw) {
  const list = el("ul", {class: "list"});
  let n = 0;
  const more = el("button", {type: "button", click: () => add()}, "Show more");
  const add = () => {
    more.remove();
    for (const end = Math.min(n + MOST_ROWS, values.length); n < end; n++) list.append(el("li", {}, draw(values[n])));
    if (n < values.length) list.after(more);
  };
  const box = el("div", {}, list);
  add();
  return box;
}

// ---- The page of a latent ----

let shown = null; // {id, own, spans}: the latent whose contexts are on the page, and a span for each place in them

function drawPage(state) {
  shown = null;
  const id = latentOf(state.id || "");
  if (id < 0) return $("#page").replaceChildren(...overview(state));
  const beside = latentOf(state.beside || "");
  const first = latentArticle(id, state, true);
  $("#page").replaceChildren(el("div", {class: beside >= 0 ? "pair" : "single"}, first, beside >= 0 ? latentArticle(beside, state, false) : null));
  layOver(pinned());
}

function overview(state) {
  const lost = state.id ? [el("p", {class: "problem", role: "alert"}, `There is no latent ${state.id}.`)] : [];
  const row = (sae) => el("tr", {}, [el("th", {scope: "row"}, sae.name), ...[sae.n, rounded(sae.l0), sae.fvu === null ? "–" : rounded(sae.fvu), sae.dead].map((value) => el("td", {}, String(value)))]);
  return [
    ...lost,
    el("p", {}, `SAEs at ${DATA.site}, on ${DATA.n_tokens.toLocaleString("en")} tokens of text. Choose a latent.`),
    el("div", {class: "wide"}, el("table", {}, el("tr", {}, ["SAE", "latents", "L0", "FVU", "never on"].map((name) => el("th", {scope: "col"}, name))), SAES.map(row))),
  ];
}

function latentArticle(id, state, isMain) {
  const article = el("article", {"data-latent": id}, el("h2", {}, el("a", {href: hashWith({id: nameOf(id), over: null, beside: null})}, nameOf(id)), " ", labels(id)));
  article.append(facts(id), histogram(id));
  if (isMain) article.append(...relations(id, state));
  article.append(el("p", {id: isMain ? "over" : null, class: "note", "aria-live": "polite"}, OF_CONTEXTS));
  article.append(contextList(id, state, isMain));
  if (isMain) article.append(...neighbours(id), DATA.latents.raised ? effects(id) : "");
  return article;
}

function facts(id) {
  const sae = saeOf(id), place = id - sae.first;
  const told = [
    ["on", `${percent(column("density")[id])} of tokens`],
    ["largest", rounded(column("max")[id])],
    ["place", `${place + 1} of ${sae.n}`],
    ["FVU", `${rounded(column("prefix_fvu")[id])} of the latents up to this one, ${sae.fvu === null ? "–" : rounded(sae.fvu)} of all`],
  ];
  return el("dl", {class: "facts"}, told.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function histogram(id) {
  const all = column("histogram"), n = all.length / nLatents, counts = [...all.subarray(id * n, (id + 1) * n)];
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const svg = make("svg", {viewBox: `0 0 ${n * 10} 40`, class: "histogram", role: "img", preserveAspectRatio: "none"});
  const top = Math.log1p(Math.max(...counts, 1));
  counts.forEach((count, i) => {
    const height = (38 * Math.log1p(count)) / top, bar = make("rect", {x: i * 10 + 1, y: 40 - height, width: 8, height});
    bar.append(make("title", {}));
    bar.firstChild.textContent = `${count} activations from ${rounded((column("max")[id] * i) / n)} to ${rounded((column("max")[id] * (i + 1)) / n)}`;
    svg.append(bar);
  });
  return el("figure", {}, svg, el("figcaption", {}, `activations above 0, from 0 to ${rounded(column("max")[id])}; bars are logarithmic`));
}

const group = (name, links) =>
  links.length ? [el("div", {class: "relation"}, el("h3", {}, name), el("ul", {class: "list"}, links.map((link) => el("li", {}, link))))] : [];

// Parents, children and matches, each a row of links; their activations on these contexts can be laid over.
function relations(id, state) {
  const link = (one, told) => [latentLink(one, " ", el("small", {}, told)), " ", pinButton(one, state)];
  const family = treeViews.flatMap((view, index) => {
    const {parent, children, weight} = treeView(index), below = children.get(id) || [];
    return [
      ...group(`parent (${view.name})`, parent[id] >= 0 ? [link(parent[id], rounded(weight[id]))] : []),
      ...group(`children (${view.name})`, below.map((child) => link(child, rounded(weight[child])))),
    ];
  });
  const matched = bestOf({k: SAES.length, ...DATA.latents.match}, id).map(({id: one, value}) =>
    [...link(one, `r ${rounded(value)}`), " ", el("a", {class: "button", href: hashWith({beside: nameOf(one)})}, "beside")]);
  return [...family, ...group("best matches in other SAEs, by correlation", matched)];
}

function neighbours(id) {
  const near = (name, table, sign) =>
    group(name, bestOf(table, id).filter(({value}) => value > 0).map(({id: one, value}) => latentLink(one, " ", el("small", {}, `${sign} ${rounded(value)}`))));
  return [...near("nearest by activation", DATA.latents.by_activation, "r"), ...near("nearest by decoder", DATA.latents.by_decoder, "cos")];
}

const pinButton = (id, state) => {
  const isPinned = state.over === nameOf(id);
  return el("a", {class: "button", role: "button", "aria-pressed": String(isPinned), "aria-label": `lay ${nameOf(id)} over`, href: hashWith({over: isPinned ? null : nameOf(id)})}, isPinned ? "lift" : "lay over");
};

function contextList(id, state, isMain) {
  const own = actsOn(id, id), contexts = contextsOf(id), spans = [];
  if (!contexts.length) return el("p", {}, "This latent is on nowhere in the text.");
  const hits = highlighted(id, state), top = column("max")[id];
  const items = contexts.map(({window, quantile}, slot) => {
    const line = [...idsOf(window)].map((token, i) => {
      const place = slot * DATA.window + i, share = own[place];
      const span = el("span", {class: "token", "data-place": place}, shownPiece(token));
      if (share) {
        span.classList.add("on");
        span.style.setProperty("--share", (share / 255).toFixed(2));
        span.title = rounded((share / 255) * top);
      }
      if (hits && hits[slot].some(([first, end]) => first <= i && i < end)) span.classList.add("hit");
      spans.push(span);
      return span;
    });
    return el("li", {class: "context"}, el("small", {title: "share of the latent's contexts with no larger activation"}, quantile.toFixed(2)), leadOf(window), line, storyButton(window));
  });
  if (isMain) shown = {id, own, spans};
  return el("ol", {class: "contexts", mouseover: (event) => tellToken(id, own, event.target)}, items);
}

// The tokens of the story just before a window.
function leadOf(window) {
  const before = unpack(DATA.follows)[window] ? [...idsOf(window - 1)].slice(-LEAD) : [];
  return el("span", {class: "lead"}, before.map(shownPiece).join(""));
}

function storyButton(window) {
  const button = el("button", {type: "button", class: "story", "aria-label": "show the whole story", click: () => {
    const {first, end} = storyOf(window), text = [];
    for (let one = first; one < end; one++) text.push(...[...idsOf(one)].map(pieceOf));
    button.replaceWith(el("blockquote", {}, text.join("")));
  }}, "…");
  return button;
}

function highlighted(id, state) {
  if (state.view !== "search" || !state.q) return null;
  try {
    return hitsOf(finderOf(modeOf(state), state.q), id, new Map());
  } catch (error) {
    if (error instanceof PatternError || error instanceof RangeError) return null; // the side says so
    throw error;
  }
}

function tellToken(id, own, target) {
  if (!target.dataset || target.dataset.place === undefined) return;
  const place = Number(target.dataset.place);
  const parts = [`“${target.textContent}”`, `${nameOf(id)}: ${rounded(actOf(id, own[place]))}`];
  if (shown && shown.id === id && shown.over) parts.push(`${nameOf(shown.over.id)}: ${rounded(actOf(shown.over.id, shown.over.acts[place]))}`);
  say(parts.join("  "));
}

function effects(id) {
  const list = (name, table) =>
    el("div", {}, el("h3", {}, name), el("ol", {class: "effects"}, bestOf(table, id).map(({id: token, value}) => el("li", {}, el("span", {class: "piece"}, shownPiece(token) || "␣"), " ", el("small", {}, rounded(value))))));
  return el("div", {class: "relation", id: "effects"}, list("raises the logits of", DATA.latents.raised), list("lowers the logits of", DATA.latents.lowered));
}

// ---- Holes: another latent's activations laid over the shown contexts ----

// Marks where both are on, where the shown latent is on and the other is silent (a hole), and where only the other is.
function layOver(id) {
  if (!shown) return;
  const {own, spans} = shown, acts = id >= 0 && id !== shown.id ? actsOn(shown.id, id) : null;
  shown.over = acts && {id, acts};
  const counts = {both: 0, hole: 0, extra: 0};
  spans.forEach((span, place) => {
    const mark = !acts ? "" : own[place] ? (acts[place] ? "both" : "hole") : acts[place] ? "extra" : "";
    span.classList.toggle("both", mark === "both");
    span.classList.toggle("hole", mark === "hole");
    span.classList.toggle("extra", mark === "extra");
    span.style.setProperty("--other", acts ? (acts[place] / 255).toFixed(2) : "0");
    if (mark) counts[mark]++;
  });
  $("#over").textContent = acts
    ? `${nameOf(id)} over ${nameOf(shown.id)}: on at ${counts.both} of its ${counts.both + counts.hole} tokens here, silent at ${counts.hole} (dashed), and on at ${counts.extra} others.`
    : id >= 0 && id !== shown.id ? `The page does not have ${nameOf(id)} on these contexts.` : OF_CONTEXTS;
}
