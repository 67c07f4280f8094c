"use strict";
// The contexts of a latent, and holes: the activations of another latent laid over them.

const LEAD = 8; // tokens shown before a context
const OF_CONTEXTS = "Contexts by their largest activation; in front, the share of contexts with no larger one.";
let shown = null; // {id, own, spans}: the latent whose contexts are on the page, and a span for each place in them

function contextList(id, state, isMain) {
  const own = actsOn(id, id),
    contexts = contextsOf(id),
    spans = [];
  if (!contexts.length) return el("p", {}, "This latent is on nowhere in the text.");
  const hits = highlighted(id, state),
    top = column("max")[id];
  const items = contexts.map(({window, quantile}, slot) => {
    const line = [...idsOf(window)].map((token, i) => {
      const place = slot * DATA.window + i,
        share = own[place];
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
    return el(
      "li",
      {class: "context"},
      el("small", {title: "share of the latent's contexts with no larger activation"}, quantile.toFixed(2)),
      leadOf(window),
      line,
      storyButton(window),
    );
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
  const button = el(
    "button",
    {
      type: "button",
      class: "story",
      "aria-label": "show the whole story",
      click: () => {
        const {first, end} = storyOf(window),
          text = [];
        for (let one = first; one < end; one++) text.push(...[...idsOf(one)].map(pieceOf));
        button.replaceWith(el("blockquote", {}, text.join("")));
      },
    },
    "…",
  );
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
  if (shown && shown.id === id && shown.over)
    parts.push(`${nameOf(shown.over.id)}: ${rounded(actOf(shown.over.id, shown.over.acts[place]))}`);
  say(parts.join("  "));
}

// Marks where both are on, where the shown latent is on and the other is silent (a hole), and where only the other is.
function layOver(id) {
  if (!shown) return;
  const {own, spans} = shown,
    acts = id >= 0 && id !== shown.id ? actsOn(shown.id, id) : null;
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
    ? `${nameOf(id)} over ${nameOf(shown.id)}: on at ${counts.both} of its ${counts.both + counts.hole} tokens here, ` +
      `silent at ${counts.hole} (dashed), and on at ${counts.extra} others.`
    : id >= 0 && id !== shown.id
      ? `The page does not have ${nameOf(id)} on these contexts.`
      : OF_CONTEXTS;
}
