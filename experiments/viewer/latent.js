"use strict";
// The page of a latent, but for its contexts: facts, histogram, relations, effects on logits.

function drawPage(state) {
  shown = null;
  const id = latentOf(state.id || "");
  if (id < 0) return $("#page").replaceChildren(...overview(state));
  const beside = latentOf(state.beside || "");
  const first = latentArticle(id, state, true);
  $("#page").replaceChildren(
    el(
      "div",
      {class: beside >= 0 ? "pair" : "single"},
      first,
      beside >= 0 ? latentArticle(beside, state, false) : null,
    ),
  );
  layOver(pinned());
}

function overview(state) {
  const lost = state.id ? [el("p", {class: "problem", role: "alert"}, `There is no latent ${state.id}.`)] : [];
  const row = (sae) =>
    el("tr", {}, [
      el("th", {scope: "row"}, sae.name),
      ...[sae.n, rounded(sae.l0), rounded(sae.fvu), sae.dead].map((value) => el("td", {}, String(value))),
    ]);
  return [
    ...lost,
    el("p", {}, `SAEs at ${DATA.site}, on ${DATA.n_tokens.toLocaleString("en")} tokens of text. Choose a latent.`),
    el(
      "div",
      {class: "wide"},
      el(
        "table",
        {},
        el(
          "tr",
          {},
          ["SAE", "latents", "L0", "FVU", "never on"].map((name) => el("th", {scope: "col"}, name)),
        ),
        SAES.map(row),
      ),
    ),
  ];
}

function latentArticle(id, state, isMain) {
  const article = el(
    "article",
    {"data-latent": id},
    el("h2", {}, el("a", {href: hashWith({id: nameOf(id), over: null, beside: null})}, nameOf(id)), " ", labels(id)),
  );
  article.append(facts(id), histogram(id));
  if (isMain) article.append(...relations(id, state));
  article.append(el("p", {id: isMain ? "over" : null, class: "note", "aria-live": "polite"}, OF_CONTEXTS));
  article.append(contextList(id, state, isMain));
  if (isMain) article.append(...neighbours(id), DATA.latents.raised ? effects(id) : "");
  return article;
}

function facts(id) {
  const sae = saeOf(id),
    place = id - sae.first;
  const told = [
    ["on", `${percent(column("density")[id])} of tokens`],
    ["largest", rounded(column("max")[id])],
    ["place", `${place + 1} of ${sae.n}`],
    ["FVU", `${rounded(column("prefix_fvu")[id])} of the latents up to this one, ${rounded(sae.fvu)} of all`],
  ];
  return el(
    "dl",
    {class: "facts"},
    told.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function histogram(id) {
  const all = column("histogram"),
    n = all.length / nLatents,
    counts = [...all.subarray(id * n, (id + 1) * n)];
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const svg = make("svg", {viewBox: `0 0 ${n * 10} 40`, class: "histogram", role: "img", preserveAspectRatio: "none"});
  const top = Math.log1p(Math.max(...counts, 1));
  counts.forEach((count, i) => {
    const height = (38 * Math.log1p(count)) / top,
      bar = make("rect", {x: i * 10 + 1, y: 40 - height, width: 8, height});
    bar.append(make("title", {}));
    const [from, to] = [i, i + 1].map((edge) => rounded((column("max")[id] * edge) / n));
    bar.firstChild.textContent = `${count} activations from ${from} to ${to}`;
    svg.append(bar);
  });
  return el(
    "figure",
    {},
    svg,
    el("figcaption", {}, `activations above 0, from 0 to ${rounded(column("max")[id])}; bars are logarithmic`),
  );
}

const group = (name, links) =>
  links.length
    ? [
        el(
          "div",
          {class: "relation"},
          el("h3", {}, name),
          el(
            "ul",
            {class: "list"},
            links.map((link) => el("li", {}, link)),
          ),
        ),
      ]
    : [];

// Parents, children and matches, each a row of links; their activations on these contexts can be laid over.
function relations(id, state) {
  const link = (one, told) => [latentLink(one, " ", el("small", {}, told)), " ", pinButton(one, state)];
  const family = treeViews.flatMap((view, index) => {
    const {parent, children, weight} = treeView(index),
      below = children.get(id) || [];
    return [
      ...group(`parent (${view.name})`, parent[id] >= 0 ? [link(parent[id], rounded(weight[id]))] : []),
      ...group(
        `children (${view.name})`,
        below.map((child) => link(child, rounded(weight[child]))),
      ),
    ];
  });
  const matched = bestOf(DATA.latents.match, id).map(({id: one, value}) => [
    ...link(one, `r ${rounded(value)}`),
    " ",
    el("a", {class: "button", href: hashWith({beside: nameOf(one)})}, "beside"),
  ]);
  return [...family, ...group("best matches in other SAEs, by correlation", matched)];
}

function neighbours(id) {
  const near = (name, table, sign) =>
    group(
      name,
      bestOf(table, id)
        .filter(({value}) => value > 0)
        .map(({id: one, value}) => latentLink(one, " ", el("small", {}, `${sign} ${rounded(value)}`))),
    );
  return [
    ...near("nearest by activation", DATA.latents.by_activation, "r"),
    ...near("nearest by decoder", DATA.latents.by_decoder, "cos"),
  ];
}

const pinButton = (id, state) => {
  const isPinned = state.over === nameOf(id);
  return el(
    "a",
    {
      class: "button",
      role: "button",
      "aria-pressed": String(isPinned),
      "aria-label": `lay ${nameOf(id)} over`,
      href: hashWith({over: isPinned ? null : nameOf(id)}),
    },
    isPinned ? "lift" : "lay over",
  );
};

function effects(id) {
  const list = (name, table) =>
    el(
      "div",
      {},
      el("h3", {}, name),
      el(
        "ol",
        {class: "effects"},
        bestOf(table, id).map(({id: token, value}) =>
          el("li", {}, el("span", {class: "piece"}, shownPiece(token) || "␣"), " ", el("small", {}, rounded(value))),
        ),
      ),
    );
  return el(
    "div",
    {class: "relation", id: "effects"},
    list("raises the logits of", DATA.latents.raised),
    list("lowers the logits of", DATA.latents.lowered),
  );
}
