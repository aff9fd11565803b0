// Token heatmaps: pairs of completions, their tokens coloured by what a run did to them. What the data says is
// put into the page as text nodes only. Numbers come as heatmap.py packs them.
"use strict";

(() => {
  const SIDES = ["chosen", "rejected"];
  const MARKS = { "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", "\u00a0": "\u237d" };
  // A paragraph of so many tokens becomes a block of its own, which is laid out when it comes into sight.
  const BLOCK = 150;
  const CURVE_POINTS = 800;

  function element(tag, name = "", text = "") {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== "") made.textContent = text;
    return made;
  }

  // Three significant digits, no more than four after the point, which is what the data has.
  function number(value, signed = false) {
    if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
    const digits = value === 0 ? 0 : Math.min(4, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
    const shown = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(shown) ? "\u2212" : signed && Number(shown) ? "+" : "") + shown;
  }

  const percent = (p) => (p > 0 && p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

  // A token's text with what cannot be seen made visible.
  function visible(text) {
    return text
      .replace(/[\n\t\r\u00a0]/g, (found) => MARKS[found])
      .replace(/ /g, "\u2423")
      .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (found) => {
        const code = found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        return `<U+${code}>`;
      });
  }

  // A span with the token's text; marks for what cannot be seen are drawn beside it, by the style sheet.
  function tokenSpan(text, at, special) {
    const span = element("span");
    span.at = at;
    span.base = special ? "t special" : "t";
    span.tabIndex = -1;
    const mark = (sign) => {
      const made = element("i", "mark");
      made.dataset.mark = sign;
      span.append(made);
    };
    if (text === "") mark("\u00b7");
    else if (/^ +$/.test(text)) {
      mark("\u2423");
      span.append(text);
    } else {
      for (const part of text.split(/([\n\t\r])/)) {
        if (part in MARKS) mark(MARKS[part]);
        if (part !== "") span.append(part);
      }
    }
    return span;
  }

  // Radio buttons with labels; `choose` is told the number of the chosen one.
  function choices(place, name, labels, choose) {
    place.replaceChildren(
      ...labels.map((content, at) => {
        const label = element("label");
        const input = element("input");
        Object.assign(input, { type: "radio", name, value: String(at) });
        input.addEventListener("change", () => choose(at));
        label.append(input, ...(Array.isArray(content) ? content : [content]));
        return label;
      }),
    );
    return [...place.querySelectorAll("input")];
  }

  class Heatmap {
    constructor(root) {
      this.root = root;
      this.id = root.dataset.heatmap;
      this.data = tdpo.data(this.id);
      for (const pair of this.data.pairs) for (const side of SIDES) this.unpack(pair[side]);
      this.find = (selector) => root.querySelector(selector);
      this.now = { pair: 0, run: 0, quantity: 0 };
      this.selected = { side: "chosen", at: 0 };
      this.texts = {};
      this.spans = { chosen: [], rejected: [] };
      for (const side of SIDES) {
        const text = this.find(`[data-side="${side}"] .heat-text`);
        this.texts[side] = text;
        this.listen(text, side);
      }
      const panel = this.find(".heat-panel");
      const room = () => root.style.setProperty("--heat-panel", `${panel.offsetHeight}px`);
      new ResizeObserver(room).observe(panel);
      this.controls();
      this.showPair(0);
      addEventListener("hashchange", () => this.follow());
      this.follow();
      tdpo.ready.then(() => this.curves());
    }

    // A link to `#tokens-pair-ID` from anywhere on the page shows that pair.
    follow() {
      const asked = decodeURIComponent(location.hash.slice(1));
      const at = this.data.pairs.findIndex((pair) => asked === `${this.id}-pair-${pair.id}`);
      if (at < 0) return;
      this.showPair(at);
      this.inputs.pair[at].closest("label").scrollIntoView({ block: "nearest" });
      this.find(".heat-head").scrollIntoView();
      this.inputs.pair[at].focus({ preventScroll: true });
    }

    // What a token adds to the text is its name, but for those that say otherwise.
    unpack(side) {
      side.pieces = side.names.map((name, at) => side.other[at] ?? this.data.texts[name]);
    }

    get pair() {
      return this.data.pairs[this.now.pair];
    }

    get run() {
      return this.data.runs[this.now.run];
    }

    // The end of the scale of colours, for the run at hand.
    get limit() {
      return this.quantity.limits[this.now.run];
    }

    get quantity() {
      return this.data.quantities[this.now.quantity];
    }

    // What the reference of the run at hand says of a side.
    reference(side) {
      return side.references[this.run.reference];
    }

    // The values of a quantity at the tokens of a side, for the run at hand; null where there are none.
    values(side, key) {
      const own = side.runs[this.now.run];
      const { logp, entropy } = this.reference(side);
      if (key === "ref_logp") return logp;
      if (key === "ref_entropy") return entropy;
      if (key === "logp") return own.log_ratio.map((ratio, at) => logp[at] + ratio);
      if (key !== "reward") return own[key] ?? null;
      const { beta } = this.run;
      if (beta === null) return null;
      return own.log_ratio.map((ratio, at) => beta * (own.token_weight ? own.token_weight[at] : 1) * ratio);
    }

    controls() {
      const { pairs, runs, quantities } = this.data;
      const columns = element("div", "heat-columns");
      for (const text of ["Why", "Margin", "Tokens"]) columns.append(element("span", "", text));
      columns.append(element("span", "heat-start", "Prompt"));
      this.margins = [];
      const rows = pairs.map((pair) => {
        const margin = element("span", "heat-margin");
        this.margins.push(margin);
        const lengths = SIDES.map((side) => pair[side].tokens.toLocaleString("en")).join(" / ");
        return [
          element("span", "", pair.why),
          margin,
          element("span", "", lengths),
          element("span", "heat-start", visible(pair.prompt.slice(-160)).replace(/\u2423/g, " ")),
        ];
      });
      const list = this.find(".heat-list");
      this.inputs = {
        pair: choices(list, `${this.id}-pair`, rows, (at) => this.showPair(at)),
        run: choices(
          this.find(".heat-runs .heat-choices"),
          `${this.id}-run`,
          runs.map((run) => run.name),
          (at) => this.showRun(at),
        ),
        quantity: choices(
          this.find(".heat-quantities .heat-choices"),
          `${this.id}-quantity`,
          quantities.map((one) => one.label),
          (at) => this.showQuantity(at),
        ),
      };
      this.inputs.pair.forEach((input, at) => {
        input.closest("label").id = `${this.id}-pair-${pairs[at].id}`;
      });
      list.prepend(columns);
    }

    showPair(at) {
      this.now.pair = at;
      this.inputs.pair[at].checked = true;
      const pair = this.pair;
      const summary = this.find(".heat-prompt summary");
      summary.replaceChildren(
        element("b", "", "Prompt "),
        element("span", "quiet", `${count(pair.prompt_tokens, "token")}  `),
        element("span", "heat-start", visible(pair.prompt).replace(/\u2423/g, " ")),
      );
      this.find(".heat-prompt pre").textContent = pair.prompt;
      this.find(".heat-prompt").open = pair.prompt.length <= 400;
      for (const side of SIDES) this.write(side, pair[side]);
      this.showRun(this.now.run, true);
    }

    write(name, side) {
      const special = new Set(side.special);
      const blocks = [element("div", "heat-block")];
      const spans = side.pieces.map((text, at) => tokenSpan(text, at, special.has(at)));
      let inside = 0;
      spans.forEach((span, at) => {
        blocks.at(-1).append(span);
        inside += 1;
        if (inside >= BLOCK && side.pieces[at].endsWith("\n") && at + 1 < spans.length) {
          blocks.push(element("div", "heat-block"));
          inside = 0;
        }
      });
      // One block has nothing to gain, and would be guessed too low.
      if (blocks.length === 1) blocks[0].style.contentVisibility = "visible";
      this.texts[name].replaceChildren(...blocks);
      this.spans[name] = spans;
      const omitted = this.find(`[data-side="${name}"] .heat-omitted`);
      const left = side.tokens - spans.length;
      omitted.hidden = left === 0;
      omitted.textContent = left
        ? `The last ${count(left, "token")} of ${side.tokens.toLocaleString("en")} are left out here, to keep ` +
          "the page small; the sums are of all."
        : "";
    }

    showRun(at, again = false) {
      this.now.run = at;
      this.inputs.run[at].checked = true;
      this.data.pairs.forEach((pair, number_) => {
        const key = this.run.beta === null ? "log_ratio" : "reward";
        const [chosen, rejected] = SIDES.map((side) => pair[side].runs[at].sums[key]);
        this.margins[number_].textContent = number(chosen - rejected, true);
      });
      const has = this.data.quantities.map((one) => this.values(this.pair.chosen, one.key) !== null);
      this.inputs.quantity.forEach((input, number_) => {
        input.disabled = !has[number_];
      });
      this.showQuantity(has[this.now.quantity] ? this.now.quantity : has.indexOf(true), again);
      this.curves();
    }

    showQuantity(at, again = false) {
      this.now.quantity = at;
      this.inputs.quantity[at].checked = true;
      const { limit } = this;
      const { key, signed } = this.quantity;
      const steps = signed ? this.data.steps[0] : this.data.steps[1];
      for (const name of SIDES) {
        const values = this.values(this.pair[name], key);
        this.spans[name].forEach((span, number_) => {
          span.className = `${span.base} ${this.step(values[number_], signed, limit, steps)}`;
        });
      }
      if (again) this.select(...this.strongest(), false);
      else this.select(this.selected.side, this.selected.at, false);
      this.legend();
      this.say();
    }

    // The class of a value's colour.
    step(value, signed, limit, steps) {
      const bin = Math.round((Math.min(limit, Math.max(signed ? -limit : 0, value)) / limit) * steps);
      if (!signed) return `s${bin}`;
      return bin === 0 ? "z" : bin < 0 ? `n${-bin}` : `p${bin}`;
    }

    // The token with the largest value: what is shown before anything is pointed at.
    strongest() {
      let found = ["chosen", 0];
      let most = -1;
      for (const name of SIDES) {
        this.values(this.pair[name], this.quantity.key).forEach((value, at) => {
          if (Math.abs(value) > most) [most, found] = [Math.abs(value), [name, at]];
        });
      }
      return found;
    }

    legend() {
      const { limit } = this;
      const { key, label, signed, unit } = this.quantity;
      const weighs = key === "reward" && this.values(this.pair.chosen, "token_weight") !== null;
      const note = weighs ? this.quantity.note.replace("\u00b7", "\u00b7 w \u00b7") : this.quantity.note;
      const steps = signed ? this.data.steps[0] : this.data.steps[1];
      const bar = element("div", "heat-bar");
      for (let bin = signed ? -steps : 0; bin <= steps; bin += 1) {
        bar.append(element("span", this.step((bin / steps) * limit, signed, limit, steps)));
      }
      const ticks = element("div", "heat-ticks");
      const ends = signed ? [-limit, 0, limit] : [0, limit];
      const texts = ends.map((value) => `${value < 0 ? "\u2212" : signed && value > 0 ? "+" : ""}${Math.abs(value)}`);
      texts[texts.length - 1] = `\u2265 ${texts.at(-1)}${unit ? ` ${unit}` : ""}`;
      if (signed) texts[0] = `\u2264 ${texts[0]}`;
      ticks.append(...texts.map((text) => element("span", "", text)));
      const legend = this.find(".heat-legend");
      legend.replaceChildren(element("div", "heat-name", `${label} a token = ${note}`), bar, ticks);
      legend.setAttribute("aria-label", `Colours: ${label}, from ${texts[0]} to ${texts.at(-1)}`);
    }

    say() {
      const { key, label, signed, unit, sums } = this.quantity;
      const totals = [];
      for (const name of SIDES) {
        const side = this.pair[name];
        const total = side.runs[this.now.run].sums[key];
        const mean = number(total / side.tokens, signed);
        const shown = sums ? `sum ${number(total, signed)} ${unit}, mean ${mean}` : `mean ${mean} ${unit}`;
        this.find(`[data-side="${name}"] .heat-sum`).textContent =
          `${shown.trim()} \u00b7 ${count(side.tokens, "token")}`;
        totals.push(sums ? total : total / side.tokens);
      }
      const { why, id, row } = this.pair;
      this.find(".heat-now").textContent =
        `${label[0].toUpperCase()}${label.slice(1)} under ${this.run.name}: chosen less rejected ` +
        `${number(totals[0] - totals[1], true)}${unit ? ` ${unit}` : ""}${sums ? "" : " in the mean"}. ` +
        `Pair ${id.slice(0, 12)}, row ${row} (${why}).`;
    }

    listen(text, side) {
      const at = (event) => event.target.closest?.(".t");
      // Where keys have moved the page under a pointer that rests, the pointer does not speak.
      const rests = (event) => this.keyed && event.clientX === this.pointer?.x && event.clientY === this.pointer?.y;
      text.addEventListener("pointerover", (event) => {
        const span = at(event);
        if (span && !rests(event)) this.tell(side, span.at);
      });
      text.addEventListener("pointermove", (event) => {
        if (!rests(event)) this.keyed = false;
        this.pointer = { x: event.clientX, y: event.clientY };
      });
      text.addEventListener("pointerleave", () => this.tell(this.selected.side, this.selected.at));
      text.addEventListener("click", (event) => {
        const span = at(event);
        if (span) this.select(side, span.at, true);
      });
      text.addEventListener("focusin", (event) => {
        const span = at(event);
        if (span) this.select(side, span.at, false);
      });
      text.addEventListener("keydown", (event) => this.key(event, side));
    }

    key(event, side) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const spans = this.spans[side];
      const at = this.selected.side === side ? this.selected.at : 0;
      const moves = {
        ArrowRight: () => at + 1,
        ArrowLeft: () => at - 1,
        ArrowDown: () => this.line(spans, at, 1),
        ArrowUp: () => this.line(spans, at, -1),
        Home: () => 0,
        End: () => spans.length - 1,
      };
      if (!(event.key in moves)) return;
      event.preventDefault();
      this.keyed = true;
      this.select(side, Math.min(spans.length - 1, Math.max(0, moves[event.key]())), true);
    }

    // The nearest token of the line above or below.
    line(spans, at, direction) {
      const box = (span) => span.getClientRects()[0] ?? span.getBoundingClientRect();
      const from = box(spans[at]);
      let best = at;
      let top = null;
      for (let next = at + direction; next >= 0 && next < spans.length; next += direction) {
        const to = box(spans[next]);
        if (Math.abs(to.top - from.top) < from.height / 2) continue;
        if (top !== null && Math.abs(to.top - top) > from.height / 2) break;
        const nearer = top === null || Math.abs(to.left - from.left) < Math.abs(box(spans[best]).left - from.left);
        if (nearer) best = next;
        top = to.top;
      }
      return best;
    }

    select(side, at, focus) {
      const before = this.spans[this.selected.side][this.selected.at];
      before?.classList.remove("at");
      for (const name of SIDES) {
        for (const span of this.texts[name].querySelectorAll('[tabindex="0"]')) span.tabIndex = -1;
      }
      this.selected = { side, at: Math.max(0, Math.min(at, this.spans[side].length - 1)) };
      const other = SIDES.find((name) => name !== side);
      if (this.spans[other].length) this.spans[other][0].tabIndex = 0;
      const span = this.spans[side][this.selected.at];
      if (!span) return;
      span.classList.add("at");
      span.tabIndex = 0;
      if (focus && document.activeElement !== span) span.focus({ preventScroll: false });
      this.tell(side, this.selected.at);
    }

    // Everything about one token.
    tell(name, at) {
      const side = this.pair[name];
      if (!(at in side.pieces)) return;
      const text = this.data.texts[side.names[at]];
      this.find(".heat-token").replaceChildren(
        element("b", "", visible(text)),
        element("span", "quiet", `${name}, token ${(at + 1).toLocaleString("en")} of ${side.tokens.toLocaleString("en")}`),
      );
      this.tellValues(side, at);
      this.tellOthers(side, at);
      this.told = { side: name, at };
    }

    tellValues(side, at) {
      const value = (key) => this.values(side, key)?.[at] ?? null;
      const rows = [["", "reference", this.run.name]];
      rows.push(["log-prob", number(value("ref_logp")), number(value("logp")), "logp"]);
      rows.push(["entropy", number(value("ref_entropy")), number(value("entropy")), "entropy", "ref_entropy"]);
      rows.push(["log-ratio", "", number(value("log_ratio"), true), "log_ratio"]);
      if (value("token_weight") !== null) rows.push(["token weight", "", number(value("token_weight")), "token_weight"]);
      if (value("reward") !== null) rows.push(["implicit reward", "", number(value("reward"), true), "reward"]);
      if (value("forward_kl") !== null) rows.push(["forward KL", "", number(value("forward_kl")), "forward_kl"]);
      const cells = rows.flatMap(([label, reference, policy, ...keys]) => {
        const name = keys.includes(this.quantity.key) ? "now" : "";
        return [element("dt", name, label), element("dd", "", reference), element("dd", name, policy)];
      });
      this.find(".heat-values").replaceChildren(...cells);
    }

    tellOthers(side, at) {
      const place = this.find(".heat-others");
      const own = side.runs[this.now.run];
      const reference = this.reference(side);
      if (!reference.alternatives.some((one) => one.length)) {
        place.replaceChildren();
        return;
      }
      const p = [Math.exp(reference.logp[at]), Math.exp(reference.logp[at] + own.log_ratio[at])];
      const rows = reference.alternatives[at].map((name, number_) => ({
        text: visible(this.data.texts[name]),
        p: [reference.p[at][number_], own.p[at][number_]],
        here: name === side.names[at],
      }));
      if (!rows.some((row) => row.here)) {
        rows.push({ text: visible(this.data.texts[side.names[at]]), p, here: true });
      }
      const rest = [0, 1].map((which) => Math.max(0, 1 - sum(rows.map((row) => row.p[which]))));
      rows.push({ text: "all others", p: rest, rest: true });
      const head = [element("span", "head", "instead"), element("span", "head")];
      for (const [name, key] of [["ref.", ""], ["policy", " policy"]]) {
        const cell = element("span", "head share");
        cell.append(element("i", `heat-key${key}`), name);
        head.push(cell);
      }
      const cells = rows.flatMap((row) => {
        const bars = element("span", "bars");
        for (const share of row.p) {
          const bar = element("i");
          bar.style.width = `${100 * share}%`;
          bars.append(bar);
        }
        const state = `${row.here ? " here" : ""}${row.rest ? " rest" : ""}`;
        const name = element("span", `name${state}`, `${row.here ? "\u25b8" : ""}${row.text}`);
        return [name, bars, ...row.p.map((share) => element("span", `share${state}`, percent(share)))];
      });
      place.replaceChildren(...head, ...cells);
    }

    // The running sums along both completions.
    curves() {
      for (const [name, key] of [["reward", this.run.beta === null ? "log_ratio" : "reward"], ["kl", "forward_kl"]]) {
        const view = tdpo.views[`${this.id}-${name}`];
        if (!view) continue;
        const rows = [];
        for (const side of SIDES) {
          const values = this.values(this.pair[side], key) ?? [];
          const stride = Math.max(1, Math.ceil(values.length / CURVE_POINTS));
          let total = 0;
          rows.push({ token: 0, sum: 0, side });
          values.forEach((value, at) => {
            total += value;
            if ((at + 1) % stride === 0 || at + 1 === values.length) rows.push({ token: at + 1, sum: total, side });
          });
        }
        // The axes take another width with other numbers.
        view.data("sums", rows).resize().runAsync();
      }
    }
  }

  tdpo.heatmaps = {};
  for (const root of document.querySelectorAll("[data-heatmap]")) {
    tdpo.heatmaps[root.dataset.heatmap] = new Heatmap(root);
  }
})();
