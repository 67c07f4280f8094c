"use strict";
// Patterns of tokens, as in  @[she her] ~ing{1,2} (the | a) !lily  — see HELP_PATTERN below for the grammar.
// A pattern becomes a nondeterministic automaton whose states are followed all at once, so that no pattern takes
// exponential time; those that are still too long stop at a number of states or of steps, with a message.

const MOST_STATES = 2000;
const MOST_STEPS = 30e6;
const HELP_PATTERN = [
  ["word", "a token with this text, whatever its case and spaces around"],
  ['"Word"', 'a token with exactly this text; \\" and \\\\ inside; a space counts: " the"'],
  ["play~  ~ing  ~oo~", "a token that begins with, ends with, or has this text"],
  [".", "any token"],
  ["\\w  \\d  \\p  \\u  \\s", "letters alone; a digit; punctuation; a capital first; a space first"],
  ["[she her \\d]  [^she her]", "one of these; none of these"],
  ["@x  !x", "x where the latent is active here; where it is silent"],
  ["x*  x+  x?  x{2}  x{2,5}  x{2,}", "repetition"],
  ["x y   x | y   (x y)", "one after the other; either; a group"],
];

class PatternError extends Error {}

// The parts of a pattern: {kind, text, at}.
function patternTokens(text) {
  const rules = [
    ["space", /\s+/y],
    ["exact", /"(?:[^"\\]|\\["\\])*"/y],
    ["class", /\\[wdpus](?![\p{L}\p{N}~])/uy],
    ["count", /\{(\d{1,6})(?:(,)(\d{1,6})?)?\}/y],
    ["sign", /[[\](){}^@!|*+?.]/y],
    ["word", /(?:\\.|[^\s"[\](){}^@!|*+?.\\])+/uy],
  ];
  const found = [];
  for (let at = 0; at < text.length;) {
    const hit = rules.map(([kind, rule]) => ((rule.lastIndex = at), [kind, rule.exec(text)])).find(([, part]) => part);
    if (!hit)
      throw new PatternError(
        `“${text[at]}” at ${at + 1} ` +
          (text[at] === '"' ? "has no closing quote" : "is not understood; write a backslash before a sign"),
      );
    const [kind, [part]] = hit;
    if (kind !== "space") found.push({kind, text: part, at});
    at += part.length;
  }
  return found;
}

// A test of a token's text.
function tokenTest({kind, text}) {
  if (kind === "exact") {
    const exact = text.slice(1, -1).replace(/\\(["\\])/g, "$1");
    return (piece) => piece === exact;
  }
  if (kind === "class") {
    const rule = {
      w: /^\s*\p{L}+\s*$/u,
      d: /\d/,
      p: /^\s*\p{P}+\s*$/u,
      u: /^\s*\p{Lu}/u,
      s: /^\s/,
    }[text[1]];
    return (piece) => rule.test(piece);
  }
  const open = text.startsWith("~"),
    close = text.length > 1 && text.endsWith("~") && !text.endsWith("\\~");
  const word = text
    .slice(open ? 1 : 0, close ? -1 : undefined)
    .replace(/\\(.)/gu, "$1")
    .toLowerCase();
  if (!word) throw new PatternError("~ needs text before or after it");
  const plain = (piece) => piece.trim().toLowerCase();
  if (open && close) return (piece) => plain(piece).includes(word);
  if (open) return (piece) => plain(piece).endsWith(word);
  if (close) return (piece) => plain(piece).startsWith(word);
  return (piece) => plain(piece) === word;
}

// Parses  either := sequence ("|" sequence)*,  sequence := repeated*,  repeated := atom count*,
// atom := ("@" | "!")? one | "(" either ")",  one := "." | token | "[" "^"? token* "]".
class PatternParser {
  constructor(text) {
    this.parts = patternTokens(text);
    this.next = 0;
  }

  peek(text) {
    const part = this.parts[this.next];
    return part && part.kind === "sign" && part.text === text;
  }

  take(text) {
    if (!this.peek(text)) return false;
    this.next++;
    return true;
  }

  parse() {
    const found = this.either();
    const part = this.parts[this.next];
    if (part) throw new PatternError(`“${part.text}” at ${part.at + 1} stands where a token is expected`);
    return found;
  }

  either() {
    const options = [this.sequence()];
    while (this.take("|")) options.push(this.sequence());
    return options.length === 1 ? options[0] : {kind: "either", options};
  }

  sequence() {
    const items = [];
    while (this.next < this.parts.length && !this.peek("|") && !this.peek(")")) items.push(this.repeated());
    return {kind: "sequence", items};
  }

  repeated() {
    let item = this.atom();
    for (;;) {
      const part = this.parts[this.next];
      if (this.take("*")) item = {kind: "repeat", item, least: 0, most: Infinity};
      else if (this.take("+")) item = {kind: "repeat", item, least: 1, most: Infinity};
      else if (this.take("?")) item = {kind: "repeat", item, least: 0, most: 1};
      else if (part && part.kind === "count") {
        this.next++;
        const [, least, comma, most] = /\{(\d+)(,)?(\d+)?\}/.exec(part.text);
        item = {kind: "repeat", item, least: +least, most: most ? +most : comma ? Infinity : +least};
        if (item.most < item.least) throw new PatternError(`${part.text}: the second number is the larger one`);
      } else return item;
    }
  }

  atom() {
    if (this.take("(")) {
      const inner = this.either();
      if (!this.take(")")) throw new PatternError("a ( has no closing )");
      return inner;
    }
    const active = this.take("@") ? true : this.take("!") ? false : null;
    if (active !== null && this.peek("(")) throw new PatternError("@ and ! stand before a single token or a class");
    return {kind: "token", active, test: this.one()};
  }

  one() {
    if (this.take(".")) return () => true;
    if (this.take("[")) {
      const not = this.take("^"),
        tests = [];
      while (!this.take("]")) tests.push(this.token("a class [ has no closing ]"));
      return (piece) => tests.some((test) => test(piece)) !== not;
    }
    return this.token("the pattern ends where a token is expected");
  }

  token(missing) {
    const part = this.parts[this.next];
    if (!part) throw new PatternError(missing);
    if (part.kind === "sign" || part.kind === "count") {
      throw new PatternError(`“${part.text}” at ${part.at + 1} stands where a token is expected`);
    }
    this.next++;
    return tokenTest(part);
  }
}

// The automaton of a pattern. A state is {token, next} or {fork: [states]}; the accepting one is {accept: true}.
function compilePattern(text) {
  const states = [];
  const add = (state) => {
    if (states.length >= MOST_STATES)
      throw new PatternError(`the pattern is too long: it has more than ${MOST_STATES} parts`);
    return states.push({...state, number: states.length}) - 1;
  };
  // The first state of `node`, after which comes the state `then`. States are made from the end.
  const build = (node, then) => {
    if (node.kind === "token") return add({token: node, active: node.active, next: then});
    if (node.kind === "sequence") return node.items.reduceRight((after, item) => build(item, after), then);
    if (node.kind === "either") return add({fork: node.options.map((option) => build(option, then))});
    let after = then;
    if (node.most === Infinity) {
      after = add({fork: [then]});
      states[after].fork.unshift(build(node.item, after));
    } else {
      for (let i = node.least; i < node.most; i++) after = add({fork: [build(node.item, after), then]});
    }
    for (let i = 0; i < node.least; i++) after = build(node.item, after);
    return after;
  };
  const accept = add({accept: true});
  const first = build(new PatternParser(text).parse(), accept);
  return {states, first, accept, usesActs: states.some((state) => typeof state.active === "boolean")};
}

// The longest match from each place of a context, without overlaps: [[first, end]…]. `budget.steps` counts down.
function matches(pattern, ids, acts, budget) {
  const found = [];
  const {states, accept} = pattern,
    seen = new Int32Array(states.length).fill(-1);
  let round = 0;
  const follow = (number, list) => {
    const stack = [number];
    while (stack.length) {
      const at = stack.pop();
      if (seen[at] === round) continue;
      seen[at] = round;
      if (--budget.steps < 0) throw new PatternError(budget.message);
      if (states[at].fork) stack.push(...states[at].fork);
      else list.push(at);
    }
  };
  const length = ids.indexOf(DATA.pieces.length) < 0 ? ids.length : ids.indexOf(DATA.pieces.length);
  for (let start = 0; start < length;) {
    let current = [],
      end = -1;
    round++;
    follow(pattern.first, current);
    for (let place = start; current.length && place < length; place++) {
      const next = [];
      round++;
      for (const number of current) {
        const state = states[number];
        if (number !== accept && holds(state, ids[place], acts && acts[place])) follow(state.next, next);
      }
      if (next.includes(accept)) end = place + 1;
      current = next;
    }
    if (end > start) found.push([start, end]);
    start = end > start ? end : start + 1;
  }
  return found;
}

// Whether a token is what a state waits for; tests of texts are kept by id.
function holds(state, id, act) {
  if (state.active !== null && state.active !== act > 0) return false;
  const memo = (state.token.memo ??= new Int8Array(DATA.pieces.length + 1));
  if (!memo[id]) memo[id] = state.token.test(pieceOf(id)) ? 1 : -1;
  return memo[id] === 1;
}
