"use strict";
// Draws what the hash says, whenever it changes; keys; help.

const VIEWS = {
  ...(SAES.length ? {tree: "Tree", list: "List", search: "Search"} : {}),
  ...(DATA.toys ? {toy: "Toy"} : {}),
};
const KEYS = [
  ["/", "search"],
  ["j  k", "next and previous latent of the SAE"],
  ["↑ ↓", "move in the tree or list"],
  ["→ ←", "open and close a node of the tree"],
  ["t  l  y", "tree, list, toy"],
  ["Esc", "lift what is laid over, close what is beside"],
  ["?", "help"],
];
let drawn = {};

function draw() {
  const state = stateOf(location.hash),
    old = drawn;
  if (!VIEWS[state.view]) state.view = Object.keys(VIEWS)[0];
  drawn = state;
  const changed = (...names) => names.some((name) => state[name] !== old[name]);
  $("#views").replaceChildren(
    ...Object.keys(VIEWS).map((view) =>
      el("a", {href: hashWith({view}), "aria-current": view === state.view ? "page" : null}, VIEWS[view]),
    ),
  );
  document.body.dataset.view = state.view;
  if (state.view === "toy") {
    $("#side").replaceChildren();
    drawToy(state);
    return;
  }
  if (changed("view", "tree", "sae", "order", "mode", "q")) drawSide(state);
  $("#side")
    .querySelectorAll("a.latent")
    .forEach((link) => (link.href = hashWith({id: nameOf(Number(link.dataset.id)), over: null, beside: null})));
  mark(state);
  drawPage(state);
  if (changed("id") && old.view) {
    if (matchMedia("(max-width: 800px)").matches) $("#page").scrollIntoView();
    else $("#page").scrollTop = 0;
  }
}

// The element that had the focus may have been drawn anew: then its successor, which has the same label, gets it.
function drawKeepingFocus() {
  const label = document.activeElement.getAttribute("aria-label");
  draw();
  if (document.activeElement !== document.body || !label || label === "search") return;
  const same = [...document.querySelectorAll("[aria-label]")].find((one) => one.getAttribute("aria-label") === label);
  if (same) same.focus({preventScroll: true});
}

function mark(state) {
  $("#side")
    .querySelectorAll("a.latent")
    .forEach((link) => {
      const isShown = nameOf(Number(link.dataset.id)) === state.id;
      if (isShown) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    });
}

function step(by) {
  const id = shownLatent(),
    sae = id >= 0 ? saeOf(id) : SAES[0],
    next = id >= 0 ? id + by : sae.first;
  if (next >= sae.first && next < sae.end) go({id: nameOf(next), over: null, beside: null});
}

function moveFocus(by) {
  const links = [...$("#side").querySelectorAll("a.latent")];
  const next = links[Math.max(0, links.indexOf(document.activeElement) + by)];
  if (next) next.focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("#help").open) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const node = document.activeElement.closest("li[data-node]");
  const actions = {
    "/": () => ($("#side input") ? $("#side input").focus() : SAES.length && go({view: "search"})),
    j: () => step(1),
    k: () => step(-1),
    ArrowDown: () => moveFocus(1),
    ArrowUp: () => moveFocus(-1),
    ArrowRight: () => node && expand(node, true),
    ArrowLeft: () => node && closeNode(node),
    t: () => VIEWS.tree && go({view: "tree"}),
    l: () => VIEWS.list && go({view: "list"}),
    y: () => VIEWS.toy && go({view: "toy"}),
    Escape: () => go({over: null, beside: null}),
    "?": showHelp,
  };
  const inSide = $("#side").contains(document.activeElement);
  if (!actions[event.key] || (event.key.startsWith("Arrow") && !inSide && document.activeElement !== document.body))
    return;
  event.preventDefault();
  actions[event.key]();
}

function closeNode(node) {
  if (node.querySelector("ul")) return expand(node, false);
  const above = node.parentElement.closest("li[data-node]");
  if (above) above.querySelector("a.latent").focus();
}

function showHelp() {
  const table = (pairs) =>
    el(
      "table",
      {},
      pairs.map(([name, told]) => el("tr", {}, el("th", {scope: "row"}, el("code", {}, name)), el("td", {}, told))),
    );
  $("#help").replaceChildren(
    el("form", {method: "dialog"}, el("button", {}, "Close")),
    el("h2", {}, "Keys"),
    table(KEYS),
    el("h2", {}, "Patterns of tokens"),
    table(HELP_PATTERN),
    el("h2", {}, "Colours"),
    el(
      "p",
      {},
      "A token is shaded by the latent's activation, relative to its largest. With another latent laid over it, an " +
        "underline shows where that is on, and a dashed frame where it is silent while the shown latent is on: a hole.",
    ),
    el("h2", {}, "Trees"),
    el(
      "p",
      {},
      "For a latent A of an SAE and B of the next larger one (or of a Matryoshka SAE's prefix and of what the next " +
        "prefix adds), the weight is the cosine of their activations over the tokens where B is on, times " +
        "max(B) / max(A). A latent with several parents is below the best one.",
    ),
  );
  $("#help").showModal();
}

addEventListener("hashchange", drawKeepingFocus);
addEventListener("keydown", onKey);
$("#help-button").addEventListener("click", showHelp);
draw();
