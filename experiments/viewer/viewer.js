"use strict";
// The views of SAEs: trees, lists, search, and the page of a latent. All text is put in as text, never as HTML.
// What is shown follows from the hash of the URL alone: view, id, over, beside, tree, mode, q.

const MOST_ROWS = 300; // of a list, before a button shows more
const $ = (selector) => document.querySelector(selector);

// An element with attributes, of which functions are listeners, and children: elements or text.
function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false)
      made.setAttribute(name, value === true ? "" : value);
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
  const kept = Object.entries({...stateOf(location.hash), ...changes}).filter(
    ([, value]) => value !== "" && value !== null,
  );
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
      class: "latent",
      href: hashWith({id: nameOf(id), over: null, beside: null}),
      "data-id": id,
      mouseenter: () => layOver(id),
      mouseleave: () => layOver(pinned()),
      focus: () => layOver(id),
      blur: () => layOver(pinned()),
    },
    el("b", {}, nameOf(id)),
    " ",
    labels(id),
    ...told,
  );
}

const labels = (id) =>
  el(
    "span",
    {class: "labels"},
    labelsOf(id).map((token) => el("span", {class: "piece"}, shownPiece(token).trim() || "␣")),
  );

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
    {
      class: "search",
      submit: (event) => {
        event.preventDefault();
        go({view: "search", mode: form.elements.mode.value, q: form.elements.q.value});
      },
    },
    el(
      "select",
      {name: "mode", "aria-label": "kind of search"},
      MODES.map((mode) => el("option", {value: mode, selected: mode === state.mode}, mode)),
    ),
    el("input", {
      name: "q",
      type: "search",
      value: state.q || "",
      placeholder: "search (press /)",
      "aria-label": "search",
      autocomplete: "off",
      spellcheck: "false",
    }),
    el("button", {}, "Go"),
  );
  return form;
}

function treeSide(state) {
  if (!treeViews.length) return [el("p", {}, "There is no tree: it takes two reference SAEs, or a Matryoshka SAE.")];
  const index = Math.min(Number(state.tree) || 0, treeViews.length - 1),
    tree = treeView(index);
  const select = el(
    "select",
    {"aria-label": "tree", change: () => go({tree: select.value})},
    treeViews.map((one, i) => el("option", {value: i, selected: i === index}, one.name)),
  );
  const families = tree.roots.filter((id) => tree.below[id]),
    alone = tree.roots.length - families.length;
  const open = new Set();
  for (let id = shownLatent(); id >= 0 && tree.parent[id] >= 0;) open.add((id = tree.parent[id]));
  return [
    select,
    el(
      "p",
      {class: "note"},
      `${families.length} roots have latents below them; ${alone} latents stand alone (in the list). ` +
        `An edge has a weight above ${DATA.least_edge}.`,
    ),
    el(
      "ul",
      {class: "tree", role: "tree"},
      families.map((id) => treeNode(tree, id, open)),
    ),
  ];
}

function treeNode(tree, id, open) {
  const children = tree.children.get(id) || [];
  const node = el("li", {role: "treeitem", "data-node": id});
  const told = tree.parent[id] >= 0 ? [el("small", {title: "weight of the edge"}, rounded(tree.weight[id]))] : [];
  const toggle = children.length
    ? el("button", {
        type: "button",
        class: "toggle",
        tabindex: -1,
        "aria-label": `${children.length} children of ${nameOf(id)}`,
        click: () => expand(node, !node.querySelector("ul")),
      })
    : el("span", {class: "toggle"});
  node.append(toggle, latentLink(id, " ", ...told));
  node.expand = () =>
    node.append(
      el(
        "ul",
        {role: "group"},
        children.map((child) => treeNode(tree, child, open)),
      ),
    );
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
    const select = el(
      "select",
      {"aria-label": name, change: () => go({[name]: select.value})},
      values.map((value) => el("option", {value, selected: value === own}, value)),
    );
    return select;
  };
  return [
    el(
      "p",
      {},
      choice(
        "sae",
        SAES.map((one) => one.name),
        sae.name,
      ),
      " by ",
      choice("order", Object.keys(orders), order),
    ),
    el("p", {class: "note"}, `${sae.n} latents, L0 ${rounded(sae.l0)}, FVU ${rounded(sae.fvu)}, ${sae.dead} never on`),
    rows(ids, (id) => latentLink(id, " ", el("small", {}, percent(column("density")[id])))),
  ];
}

function searchSide(state) {
  if (!state.q) return [el("p", {class: "note"}, "Give a token, a text or a pattern.")];
  const {rows: found, message} = search(modeOf(state), state.q);
  return [
    message ? el("p", {class: "problem", role: "alert"}, message) : null,
    el(
      "p",
      {class: "note", id: "found"},
      `${found.length} latents with a match in their contexts, by the share of their activation on matches`,
    ),
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
