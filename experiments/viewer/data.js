"use strict";
// The data of the page as collect.py and toy_runs.py wrote them. Arrays are unpacked when they are first asked for.

const TYPES = {u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array};
const DATA = JSON.parse(document.getElementById("data").textContent);
const unpacked = new Map();

// The typed array of {type, data}, whose bytes are base64, little-endian.
function unpack(packed) {
  if (!unpacked.has(packed)) {
    const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
    unpacked.set(packed, new TYPES[packed.type](bytes.buffer));
  }
  return unpacked.get(packed);
}

// SAEs, with the number of each one's first latent. Latents are numbered over all SAEs.
let nLatents = 0;
const SAES = (DATA.saes || []).map((sae, index) => {
  const first = nLatents;
  nLatents += sae.n;
  return {...sae, index, first, end: nLatents};
});
const saeOf = (id) => SAES.find((sae) => id < sae.end);
const nameOf = (id) => `${saeOf(id).name}/${id - saeOf(id).first}`;
const column = (name) => unpack(DATA.latents[name]);

// The number of the latent with a name such as S/2/65; −1 if there is none.
function latentOf(name) {
  const cut = name.lastIndexOf("/");
  const sae = SAES.find((one) => one.name === name.slice(0, cut));
  const i = Number(name.slice(cut + 1));
  return sae && Number.isInteger(i) && i >= 0 && i < sae.n && cut + 1 < name.length ? sae.first + i : -1;
}

// The entries of a row of {k, column, value} that are there.
function bestOf(table, row) {
  const columns = unpack(table.column),
    values = unpack(table.value),
    found = [];
  for (let i = row * table.k; i < (row + 1) * table.k; i++) {
    if (columns[i] >= 0) found.push({id: columns[i], value: values[i]});
  }
  return found;
}

// The contexts of a latent: the window of each, and its quantile.
function contextsOf(id) {
  const start = unpack(DATA.contexts.start),
    windows = unpack(DATA.contexts.window);
  const quantiles = unpack(DATA.contexts.quantile),
    found = [];
  for (let i = start[id]; i < start[id + 1]; i++) found.push({window: windows[i], quantile: quantiles[i]});
  return found;
}

const partnersOf = (id) =>
  unpack(DATA.pairs.partner).subarray(unpack(DATA.pairs.start)[id], unpack(DATA.pairs.start)[id + 1]);

// The activations of `partner` on the contexts of `owner`, in 0 … 255 of its largest, DATA.window to a context;
// null where the page does not have them.
function actsOn(owner, partner) {
  const at = partnersOf(owner).indexOf(partner);
  if (at < 0) return null;
  const pair = unpack(DATA.pairs.start)[owner] + at,
    entry = unpack(DATA.pairs.entry);
  const places = unpack(DATA.entries.place),
    values = unpack(DATA.entries.value);
  const acts = new Uint8Array(contextsOf(owner).length * DATA.window);
  for (let i = entry[pair]; i < entry[pair + 1]; i++) acts[places[i]] = values[i];
  return acts;
}

const actOf = (id, share) => (share / 255) * column("max")[id];

// The ids of a window; DATA.pieces.length stands where the story has ended.
const idsOf = (window) => unpack(DATA.tokens).subarray(window * DATA.window, (window + 1) * DATA.window);
const pieceOf = (id) => (id < DATA.pieces.length ? DATA.pieces[id] : "");
const shownPiece = (id) => pieceOf(id).replace(/\n/g, "⏎").replace(/\t/g, "⇥");

const labelsOf = (id) => {
  const n = column("labels").length / nLatents;
  return [...column("labels").subarray(id * n, (id + 1) * n)].filter((token) => token < DATA.pieces.length);
};

// The windows of the story that a window is of.
function storyOf(window) {
  const follows = unpack(DATA.follows);
  let first = window,
    end = window + 1;
  while (follows[first]) first--;
  while (end < follows.length && follows[end]) end++;
  return {first, end};
}

// A tree with lists of children and the number of latents below each.
const treeViews = (DATA.trees || []).map((tree) => ({...tree, made: null}));
function treeView(index) {
  const tree = treeViews[index];
  if (!tree.made) {
    const parent = unpack(tree.parent),
      below = new Uint32Array(nLatents),
      children = new Map(),
      roots = [];
    const members = tree.levels.flatMap(([first, end]) => Array.from({length: end - first}, (_, i) => first + i));
    for (const id of [...members].reverse()) {
      if (parent[id] >= 0) below[parent[id]] += below[id] + 1;
    }
    const density = column("density");
    const larger = (a, b) => below[b] - below[a] || density[b] - density[a] || a - b;
    for (const id of members.sort(larger)) {
      if (parent[id] < 0) roots.push(id);
      else children.set(parent[id], [...(children.get(parent[id]) || []), id]);
    }
    tree.made = {parent, weight: unpack(tree.weight), below, children, roots};
  }
  return tree.made;
}
