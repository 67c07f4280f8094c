"use strict";
// The toy's view: the tree of features, each beside its matched latent, and both on the same rows; a slider over steps.

const FULL = 1.25; // of a feature's size, which has the strongest shade (toy_runs.py)

function drawToy(state) {
  const toys = DATA.toys,
    index = Math.min(Number(state.run) || 0, toys.length - 1),
    toy = toys[index];
  const seed = toy.seeds.find((one) => String(one.seed) === state.seed) || toy.seeds[0];
  const last = seed.steps.length - 1;
  const at = state.step === undefined ? last : Math.min(Math.max(Number(state.step) || 0, 0), last);
  const choose = (name, options) => {
    const select = el(
      "select",
      {"aria-label": name, change: () => go({[name]: select.value})},
      options.map(([value, text, selected]) => el("option", {value, selected}, text)),
    );
    return select;
  };
  const slider = el("input", {
    type: "range",
    min: 0,
    max: last,
    value: at,
    "aria-label": "training step",
    disabled: last === 0,
    input: () => {
      fillToy(toy, seed, Number(slider.value));
      history.replaceState(null, "", hashWith({step: slider.value})); // nothing is drawn anew: the focus stays
    },
  });
  $("#page").replaceChildren(
    el(
      "p",
      {},
      choose(
        "run",
        toys.map((one, i) => [i, one.name, i === index]),
      ),
      " ",
      choose(
        "seed",
        toy.seeds.map((one) => [one.seed, `seed ${one.seed}`, one === seed]),
      ),
    ),
    el("p", {class: "slider"}, slider, " ", el("output", {id: "toy-step"})),
    el(
      "p",
      {class: "note", id: "no-steps", hidden: last > 0},
      "This run has kept its last step alone; experiments.train --snapshots 20 keeps others.",
    ),
    el("div", {id: "toy"}),
  );
  fillToy(toy, seed, at);
}

function fillToy(toy, seed, at) {
  const step = seed.steps[at];
  $("#toy-step").textContent =
    `${step.step === null ? "" : `step ${step.step}`}${step === seed.steps.at(-1) ? ", the end" : ""}`.replace(
      /^, /,
      "",
    );
  const holes = step.holes.filter((rate) => rate !== null),
    mean = holes.reduce((sum, rate) => sum + rate, 0) / holes.length;
  $("#toy").replaceChildren(
    el(
      "p",
      {},
      `${step.recovered ? "Recovered" : "Not recovered"}: least cosine ${rounded(Math.min(...step.cosine))}, ` +
        `mean hole rate ${rounded(mean)}, FVU ${rounded(step.fvu)}, L0 ${rounded(step.l0)}.`,
    ),
    el(
      "div",
      {class: "toy"},
      el("div", {}, el("h2", {}, "Features and their latents"), toyTree(toy, step, -1)),
      el("div", {class: "maps"}, heatmap("truth", toy, seed.truth), heatmap("latents", toy, step.acts)),
    ),
  );
}

// The features below a feature, each with its latent, its cosine, and the hole rate of the edge to its parent.
function toyTree(toy, step, parent) {
  const below = toy.parent.flatMap((own, i) => (own === parent ? [i] : []));
  const item = (i) => {
    const edge = toy.edges.findIndex(([, child]) => child === i),
      rate = edge < 0 ? null : step.holes[edge];
    const told = [`latent ${step.latent[i] < 0 ? "–" : step.latent[i]}`, `cos ${step.cosine[i].toFixed(2)}`];
    if (rate !== null) told.push(`parent silent ${percent(rate)}`);
    return el(
      "li",
      {class: step.cosine[i] < 0.9 || rate > 0.01 ? "weak" : ""},
      el("b", {}, toy.features[i]),
      el("small", {}, ` on ${percent(toy.density[i])}; ${told.join(", ")}`),
      toyTree(toy, step, i),
    );
  };
  return below.length ? el("ul", {class: "toy-tree"}, below.map(item)) : null;
}

// Rows are samples, columns the features or their latents; the same rows in both.
function heatmap(name, toy, packed) {
  const values = unpack(packed),
    n = toy.features.length,
    size = Math.max(4, Math.min(14, Math.floor(280 / n)));
  const canvas = el("canvas", {
    width: n,
    height: toy.n_rows,
    role: "img",
    "aria-label": `${name}: ${toy.n_rows} rows of ${n} features`,
    style: `width:${n * size}px;height:${toy.n_rows * 4}px`,
  });
  const context = canvas.getContext("2d"),
    image = context.createImageData(n, toy.n_rows);
  values.forEach((value, i) => image.data.set([30, 100, 200, value], 4 * i));
  context.putImageData(image, 0, 0);
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const feature = Math.floor(((event.clientX - box.left) / box.width) * n),
      row = Math.floor(((event.clientY - box.top) / box.height) * toy.n_rows);
    if (toy.features[feature] !== undefined)
      say(
        `${name}: feature ${toy.features[feature]}, row ${row}: ` +
          `${((FULL * values[row * n + feature]) / 255).toFixed(2)} of its size`,
      );
  });
  return el("figure", {}, el("figcaption", {}, name), canvas);
}
