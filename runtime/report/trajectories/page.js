"use strict";
// Draws the page from the data beside it. Texts of episodes become text nodes only: nothing here parses markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const facts = data.facts, contents = data.contents;
  const main = document.getElementById("main");
  const SVG = "http://www.w3.org/2000/svg";
  const state = { text: "", domain: "", outcome: "", status: "", refused: "", tool: "", episode: "" };

  function el(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) if (value !== null) made.setAttribute(key, value);
    made.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined).map((one) => (one instanceof Node ? one : String(one))));
    return made;
  }
  function svg(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const number = (value) => value.toLocaleString("en-US");
  const short = (value) => (value < 10000 ? number(value) : `${(value / 1000).toFixed(value < 100000 ? 1 : 0)}K`);
  const unique = (values) => [...new Set(values)].sort();
  const mean = (values) => (values.length ? values.reduce((sum, one) => sum + one, 0) / values.length : 0);
  const kind = (outcome) => ({ solved: "good", failed: "bad" })[outcome] || "none";

  // What a search looks through; built once, as the texts are long.
  const searchable = facts.map((one, place) => {
    const turns = place < contents.length ? contents[place].turns : [];
    return [one.key, one.domain, ...turns.flatMap((turn) => [turn.text, turn.thought, ...turn.calls.map((call) => call.name + call.arguments)])]
      .join("\n").toLowerCase();
  });

  function chosen() {
    const text = state.text.toLowerCase();
    return facts.map((_, place) => place).filter((place) => {
      const one = facts[place];
      return (!state.domain || one.domain === state.domain) && (!state.outcome || one.outcome === state.outcome) &&
        (!state.status || one.status === state.status) && (!state.refused || one.refused === state.refused) && (!state.tool || state.tool in one.tools) && (!text || searchable[place].includes(text));
    });
  }

  function bars(title, rows, most) {
    const top = Math.max(1, ...rows.map((row) => row.count));
    const drawn = rows.slice(0, most).map((row) => el("div", { class: "bar-row" },
      el("span", { title: row.name }, row.name),
      el("span", { class: "track" }, el("span", { class: "fill " + (row.kind || ""), style: `width:${(100 * row.count) / top}%${row.count ? "" : ";min-width:0"}` })),
      el("span", { class: "n" }, number(row.count))));
    const more = rows.length > most ? [el("div", { class: "meta" }, `and ${rows.length - most} more`)] : [];
    return el("div", {}, el("h3", {}, title), drawn.length ? drawn : el("div", { class: "empty" }, "none"), more);
  }
  function counted(values, kindOf) {
    const counts = new Map();
    for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
    return [...counts].map(([name, count]) => ({ name, count, kind: kindOf && kindOf(name) })).sort((a, b) => b.count - a.count || (a.name < b.name ? -1 : 1));
  }
  function histogram(values) {
    if (!values.length) return [];
    const low = Math.min(...values), high = Math.max(...values);
    const width = Math.max(1, Math.ceil((high - low + 1) / 8));
    const rows = [];
    for (let start = low; start <= high; start += width) {
      const end = Math.min(high, start + width - 1);
      rows.push({ name: start === end ? short(start) : `${short(start)} to ${short(end)}`, count: values.filter((one) => one >= start && one <= end).length });
    }
    return rows;
  }

  function figure(name, value, note) {
    return el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, note)));
  }

  function drawNumbers(places) {
    const some = places.map((place) => facts[place]);
    const judged = some.filter((one) => one.reward !== null), solved = judged.filter((one) => one.outcome === "solved").length;
    const tokens = some.map((one) => one.tokens), trained = some.reduce((sum, one) => sum + one.trained, 0);
    const total = tokens.reduce((sum, one) => sum + one, 0);
    figures.replaceChildren(
      figure("episodes", number(some.length), some.length === facts.length ? "all of the set" : `of ${number(facts.length)}`),
      figure("solved", judged.length ? `${((100 * solved) / judged.length).toFixed(1)} %` : "-", `${number(solved)} of ${number(judged.length)} with a verdict`),
      figure("tokens an episode", number(Math.round(mean(tokens))), `at most ${number(Math.max(0, ...tokens))}, by ${data.counted_by}`),
      figure("trained", total ? `${((100 * trained) / total).toFixed(1)} %` : "-", `${number(trained)} of ${number(total)} tokens`));
    charts.replaceChildren(
      bars("Turns of the model", histogram(some.map((one) => one.turns)), 8),
      bars("Tokens", histogram(tokens), 8),
      bars("Calls by tool", counted(some.flatMap((one) => Object.entries(one.tools).flatMap(([name, times]) => Array(times).fill(name)))), 8),
      bars("Outcome", counted(some.map((one) => one.outcome), kind), 8),
      bars("Refused or unfinished because", counted(some.map((one) => one.refused).filter(Boolean), () => "bad"), 8),
      bars("Domain", counted(some.map((one) => one.domain)), 8));
  }

  function drawList(places) {
    const shown = places.slice(0, 400);
    list.replaceChildren(...shown.map((place) => {
      const one = facts[place];
      const button = el("button", { type: "button", "data-episode": place, "aria-current": String(place) === state.episode ? "true" : "false" },
        el("span", { class: "key" }, one.key || "(no key)"),
        el("small", {}, `${one.domain} · ${number(one.turns)} turns · ${number(one.tokens)} tokens`),
        el("span", { class: "badge " + kind(one.outcome) }, one.outcome), one.refused ? el("span", { class: "badge bad" }, one.refused) : null);
      button.addEventListener("click", () => { state.episode = String(place); draw(); });
      return button;
    }));
    if (!places.length) list.append(el("p", { class: "empty" }, "No episode fits these filters."));
    if (places.length > shown.length) list.append(el("p", { class: "meta" }, `and ${number(places.length - shown.length)} more; narrow the filters`));
  }

  function pretty(text) {
    try {
      const value = JSON.parse(text), line = JSON.stringify(value, null, 1).replace(/\n\s*/g, " ");
      return line.length <= 100 ? line : JSON.stringify(value, null, 1);
    } catch { return text; }
  }
  function drawTurn(turn, place) {
    const names = { system: "system", user: "user", tool: "observation", assistant: turn.calls.length ? "action" : "answer", policy: "written by the policy", context: "read" };
    const verdicts = turn.verdicts.map((one) => el("span", { class: "badge " + (one >= 1 ? "good" : one > 0 ? "none" : "bad") }, one >= 1 ? "step right" : one > 0 ? `step ${one}` : "step wrong"));
    const unreadable = turn.unreadable ? el("span", { class: "badge bad" }, "unreadable") : null;
    const logprob = turn.logprob === undefined ? null : `mean log-probability ${turn.logprob}`;
    return el("div", { class: "turn" + (turn.trained ? " trained" : "") + (turn.restart ? " restart" : ""), "data-turn": place },
      el("div", { class: "head" }, el("b", {}, names[turn.role] || turn.role), verdicts, unreadable, logprob, el("span", { class: "n" }, `${number(turn.tokens)} tokens`)),
      turn.thought ? el("pre", { class: "thought", title: "thought" }, turn.thought) : null,
      turn.calls.map((call) => [el("p", { class: "call" }, call.name), el("pre", {}, pretty(call.arguments))]),
      turn.text ? el("pre", {}, turn.text) : null);
  }

  // Tools in a column on the left, evidence on the right; a curve for each call after another, a line for each reading.
  function drawRegion(region) {
    const tools = region.tools.slice(0, 14), evidence = region.evidence.slice(0, 14);
    if (!tools.length && !evidence.length) return el("p", { class: "empty" }, "no tools and no evidence are recorded");
    const rows = Math.max(tools.length, evidence.length), height = rows * 38 + 12, width = 250, right = evidence.length ? 158 : 250;
    const label = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
    const y = (place) => place * 38 + 24;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "the part of the graph that the episode touched" });
    for (const [one, other, times] of region.transitions) {
      const from = tools.indexOf(one), to = tools.indexOf(other);
      if (from < 0 || to < 0) continue;
      const bend = from === to ? 18 : 10 + 7 * Math.abs(from - to);
      const path = from === to ? `M 22 ${y(from) - 5} C ${22 - bend} ${y(from) - 14} ${22 - bend} ${y(from) + 14} 22 ${y(from) + 5}`
        : `M 22 ${y(from)} C ${Math.max(2, 22 - bend)} ${y(from)} ${Math.max(2, 22 - bend)} ${y(to)} 22 ${y(to)}`;
      picture.append(svg("path", { d: path, class: "edge", "stroke-width": Math.min(4, 1 + Math.log2(times)) }));
    }
    for (const [tool, node] of region.reads) {
      const from = tools.indexOf(tool), to = evidence.findIndex((one) => one.id === node);
      if (from >= 0 && to >= 0) picture.append(svg("path", { d: `M 126 ${y(from)} C 140 ${y(from)} 140 ${y(to)} ${right - 6} ${y(to)}`, class: "edge" }));
    }
    tools.forEach((name, place) => picture.append(svg("circle", { cx: 28, cy: y(place), r: 6, class: "node tool" }), svg("text", { x: 40, y: y(place) + 4 }, label(name, 13))));
    evidence.forEach((one, place) => {
      const title = svg("title", {}, `${one.kind}: ${one.name}`);
      const style = "node" + (one.required ? " required" : "") + (one.consulted ? "" : " unread");
      picture.append(svg("circle", { cx: right, cy: y(place), r: 6, class: style }, title), svg("text", { x: right + 10, y: y(place) + 4 }, label(one.name, 11)));
    });
    const more = region.evidence.length - evidence.length;
    return more > 0 ? [picture, el("p", { class: "meta" }, `and ${more} more pieces of evidence`)] : picture;
  }

  function drawEpisode(places) {
    const place = Number(state.episode);
    if (state.episode === "" || !places.includes(place)) { episode.replaceChildren(el("p", { class: "empty" }, "Choose an episode.")); return; }
    const one = facts[place], content = contents[place];
    const head = [el("p", { class: "meta" }, `episode ${place + 1} of ${facts.length} · ${one.domain}`), el("h2", {}, content ? content.instruction || one.key : one.key),
      el("p", {}, el("span", { class: "badge " + kind(one.outcome) }, one.outcome), " ", one.refused ? el("span", { class: "badge bad" }, `refused: ${one.refused}`) : null, ` ${one.status}`)];
    if (!content) { episode.replaceChildren(...head, el("p", { class: "empty" }, "Its timeline is not on this page; write the page with a larger --limit.")); return; }
    const total = Math.max(1, one.tokens);
    const strip = el("div", { class: "tokens", title: "tokens in order" }, content.turns.map((turn) => el("span", { class: turn.trained ? "trained" : "", style: `flex:${turn.tokens / total} 1 0` })));
    const legend = el("p", { class: "key-line" }, el("span", {}, el("i", { class: "trained" }), `trained: ${number(one.trained)} tokens`), el("span", {}, el("i", {}), `context only: ${number(one.tokens - one.trained)} tokens`));
    const known = [["answer", content.answer], ["target", content.target], ["verifiers", content.verifiers.join(", ")], ["id", content.id], ...Object.entries(content.origin)];
    const required = content.region.evidence.filter((node) => node.required);
    const side = el("aside", { class: "side" },
      el("h3", {}, "Region of the graph"), el("div", { class: "region" }, drawRegion(content.region)),
      required.length ? el("p", { class: "meta" }, `${required.filter((node) => node.consulted).length} of ${required.length} pieces of required evidence consulted; dashed: never read`) : null,
      el("h3", {}, "About it"),
      el("dl", { class: "facts" }, known.filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
    episode.replaceChildren(...head, strip, legend, el("div", { class: "body" }, el("div", { class: "timeline" }, content.turns.map(drawTurn)), side));
  }

  function select(name, title, values) {
    const made = el("select", { name }, el("option", { value: "" }, "all"), values.map((value) => el("option", { value }, value)));
    made.addEventListener("change", () => { state[name] = made.value; draw(); });
    return el("label", {}, title, made);
  }
  const search = el("input", { type: "search", name: "text", placeholder: "words of a task, a call or an observation" });
  search.addEventListener("input", () => { state.text = search.value; draw(); });
  const clear = el("button", { type: "button" }, "clear");
  clear.addEventListener("click", () => { for (const name of Object.keys(state)) state[name] = ""; draw(); });
  const filters = el("form", { class: "filters" }, el("label", { class: "search" }, "search", search),
    select("domain", "domain", unique(facts.map((one) => one.domain))), select("outcome", "outcome", unique(facts.map((one) => one.outcome))),
    select("status", "ended", unique(facts.map((one) => one.status))), select("refused", "refused by", unique(facts.map((one) => one.refused).filter(Boolean))), select("tool", "tool", unique(facts.flatMap((one) => Object.keys(one.tools)))), clear);
  filters.addEventListener("submit", (event) => event.preventDefault());
  const figures = el("dl", { class: "figures" }), charts = el("div", { class: "charts" });
  const list = el("section", { class: "list", "aria-label": "episodes" }), episode = el("section", { class: "episode", "aria-live": "polite" });
  main.replaceChildren(el("section", {}, filters), figures, el("section", {}, el("h2", {}, "The set"), el("p", { class: "soft" }, "Of what the filters leave."), charts), el("div", { class: "columns" }, list, episode));

  function draw() {
    const places = chosen();
    if (state.episode === "" || !places.includes(Number(state.episode))) state.episode = places.length ? String(places[0]) : "";
    for (const control of filters.elements) if (control.name && control.value !== state[control.name]) control.value = state[control.name];
    drawNumbers(places); drawList(places); drawEpisode(places);
    const kept = Object.entries(state).filter(([, value]) => value !== "").map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
    history.replaceState(null, "", "#" + kept.join("&"));
  }
  function read() {
    for (const name of Object.keys(state)) state[name] = "";
    for (const part of location.hash.slice(1).split("&")) {
      const [name, value] = part.split("=");
      if (name in state && value !== undefined) { try { state[name] = decodeURIComponent(value); } catch { state[name] = ""; } }
    }
  }
  addEventListener("hashchange", () => { read(); draw(); });
  read();
  draw();
})();
