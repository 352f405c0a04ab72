"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const held = byId("data").textContent.trim();
  const data = held ? JSON.parse(held) : null;

  // ---- what is known: from the page itself, or from the server it came from
  const local = data && {
    statements: new Map(data.statements.map((s) => [s.id, s])), nodes: new Map(data.nodes.map((n) => [n.id, n])), near: new Map(),
    add(key, s) { if (!this.near.has(key)) this.near.set(key, []); this.near.get(key).push(s); },
  };
  if (local) for (const s of data.statements) { local.add(s.s, s); if (s.o && s.o !== s.s) local.add(s.o, s); }
  const ask = {
    async stats() { return local ? data.stats : get("stats"); },
    async search(q) {
      if (!local) return get("search", { q });
      const parts = q.toLowerCase().split(/\s+/).filter(Boolean);
      if (!parts.length) return data.first.map((i) => local.nodes.get(i));
      const hit = data.nodes.filter((n) => (data.names[n.id] || []).some((w) => parts.every((p) => w.toLowerCase().includes(p))));
      return hit.sort((a, b) => a.label.length - b.label.length || (a.label < b.label ? -1 : 1)).slice(0, 60);
    },
    async around(id) {
      if (!local) return get("around", { id, hops: 1 });
      const edges = (local.near.get(id) || []).slice(0, 400), ids = new Set([id]);
      for (const s of edges) { ids.add(s.s); if (s.o) ids.add(s.o); }
      return { centre: id, nodes: [...ids].map((i) => local.nodes.get(i)).filter(Boolean), edges, names: [id] };
    },
    async statement(id) { return local ? local.statements.get(id) || null : get("statement", { id }); },
    async failures() { return local ? data.failures : get("failures"); },
  };
  async function get(what, query = {}) {
    const answer = await fetch(what + "?" + new URLSearchParams(query), { credentials: "same-origin" });
    return answer.ok ? answer.json() : null;
  }

  // ---- small pieces of the page; text only ever goes in as text
  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "click") node.addEventListener("click", value);
      else if (key === "colour") node.style.setProperty("background", value);
      else if (key === "edge") node.style.setProperty("border-left-color", value);
      else node.setAttribute(key, value);
    }
    for (const child of children) node.append(child === null || child === undefined ? "" : child);
    return node;
  }
  const clear = (node) => { node.replaceChildren(); return node; };
  const PALETTE = ["#2f6fb2", "#c8701a", "#3c8a52", "#a8456b", "#7a5bb0", "#8a7a1f", "#2a8f93", "#c04a3c", "#5f6b7a", "#b07cc6"];
  const NONE = "#8c8880";
  const colour = (source) => (source === null || source === undefined ? NONE : PALETTE[source % PALETTE.length]);

  // ---- state
  const state = { stats: null, nodes: new Map(), edges: new Map(), centre: null, chosen: null, off: new Set(), least: 0, view: { x: 0, y: 0, k: 1 } };
  const visible = (e) => e.confidence >= state.least && !(e.sources.length && e.sources.every((s) => state.off.has(s)));

  async function showEntity(id, push = true) {
    const found = await ask.around(id);
    if (!found) return;
    if (push) history.replaceState(null, "", "#e=" + encodeURIComponent(id));
    state.centre = found.centre; state.chosen = null;
    for (const n of found.nodes) if (!state.nodes.has(n.id)) place(n, state.nodes.get(found.centre));
    for (const e of found.edges) state.edges.set(e.id, e);
    prune(found);
    const detail = clear(byId("detail")), me = found.nodes.find((n) => n.id === found.centre) || { label: id, types: [] };
    detail.append(make("h3", {}, me.label), make("p", { class: "kind" }, me.types.join(", ")), make("p", { class: "place" }, found.centre));
    if (found.names.length > 1) detail.append(make("p", { class: "place" }, "merged from: " + found.names.join(", ")));
    detail.append(make("h2", {}, "Statements"));
    for (const e of found.edges) detail.append(line(e, found.nodes));
    wake();
  }
  function line(e, nodes) {
    const label = (id) => (nodes.find((n) => n.id === id) || { label: id }).label;
    const text = e.value === null ? [label(e.s), e.p, label(e.o)] : [label(e.s), e.p, e.value];
    const dots = e.sources.slice(0, 6).map((s) => make("span", { class: "dot", colour: colour(s) }));
    return make("div", { class: "row" }, ...dots, make("button", { class: "link value status-" + e.status, click: () => showStatement(e.id) }, text.join(" · ")),
      make("span", { class: "kind" }, ` ${e.status}, ${e.confidence}`));
  }
  async function showStatement(id, push = true) {
    const s = await ask.statement(id);
    if (!s) return;
    if (push) history.replaceState(null, "", "#s=" + encodeURIComponent(id));
    if (!state.edges.has(id) || !state.nodes.has(s.s)) await showEntity(s.s, false);
    state.chosen = id;
    const detail = clear(byId("detail"));
    detail.append(make("p", {}, make("button", { class: "link", click: () => showEntity(s.s) }, s.subject.label), ` ${s.p} `,
      s.object ? make("button", { class: "link", click: () => showEntity(s.o) }, s.object.label) : make("span", { class: "value" }, s.value)));
    const list = make("dl");
    const say = (name, value) => { if (value !== null && value !== undefined && value !== "") list.append(make("dt", {}, name), make("dd", {}, String(value))); };
    say("status", s.status); say("confidence", `${s.confidence} (${s.kind})`);
    for (const [p, v] of s.qualifiers) say(p, v);
    for (const [k, v] of Object.entries(s.times)) say(k.replace("_", " "), v);
    say("id", s.id);
    detail.append(list, make("h2", {}, s.evidence.length ? "Evidence" : "No evidence"));
    for (const e of s.evidence) detail.append(proof(e));
    wake();
  }
  function proof(e) {
    const place = [e.page ? `page ${e.page}` : "", e.place || (/^[0-9a-f]{16}$/.test(e.element) ? "" : e.element), e.end > e.start ? `characters ${e.start} to ${e.end}` : ""].filter(Boolean).join(", ");
    const box = make("div", { class: "evidence", edge: colour(e.source) }, make("div", {}, e.name), make("div", { class: "place" }, place));
    if (e.quote !== undefined) {
      box.append(make("p", { class: "text" }, e.before, make("mark", {}, e.quote), e.after));
      if (!e.intact) box.append(make("p", { class: "bad" }, "The text at this place is not the text that was quoted."));
    }
    const how = [e.method, e.model, e.score === null ? "" : `score ${e.score}`].filter(Boolean).join(", ");
    if (how) box.append(make("div", { class: "place" }, how));
    for (const id of e.premises) box.append(make("button", { class: "link", click: () => showStatement(id) }, "premise " + id.slice(0, 8)));
    return box;
  }

  // ---- the picture: springs, charges, a little friction
  const canvas = byId("canvas"), pen = canvas.getContext("2d");
  let heat = 0, frame = 0, drag = null;
  function place(n, near) {
    const i = state.nodes.size, a = i * 2.399963, r = 26 * Math.sqrt(i + 1);
    state.nodes.set(n.id, { ...n, x: (near ? near.x : 0) + r * Math.cos(a), y: (near ? near.y : 0) + r * Math.sin(a), vx: 0, vy: 0 });
  }
  function prune(found) {
    if (state.nodes.size <= 250) return;
    const keep = new Set(found.nodes.map((n) => n.id));
    for (const id of [...state.nodes.keys()]) if (!keep.has(id)) state.nodes.delete(id);
    for (const [id, e] of [...state.edges]) if (!keep.has(e.s) || (e.o && !keep.has(e.o))) state.edges.delete(id);
  }
  function wake() { heat = 1; if (!frame) frame = requestAnimationFrame(step); }
  function step() {
    const nodes = [...state.nodes.values()], centre = state.nodes.get(state.centre);
    for (let i = 0; i < nodes.length; i++) for (let j = i + 1; j < nodes.length; j++) {
      const a = nodes[i], b = nodes[j]; let dx = a.x - b.x, dy = a.y - b.y; const d2 = dx * dx + dy * dy + 40, f = 4200 * heat / d2, d = Math.sqrt(d2);
      dx *= f / d; dy *= f / d; a.vx += dx; a.vy += dy; b.vx -= dx; b.vy -= dy;
    }
    for (const e of state.edges.values()) {
      const a = state.nodes.get(e.s), b = e.o && state.nodes.get(e.o);
      if (!a || !b || a === b) continue;
      const dx = b.x - a.x, dy = b.y - a.y, d = Math.sqrt(dx * dx + dy * dy) + 0.1, f = 0.04 * heat * (d - 150) / d;
      a.vx += f * dx; a.vy += f * dy; b.vx -= f * dx; b.vy -= f * dy;
    }
    for (const n of nodes) {
      n.vx -= 0.003 * n.x * heat; n.vy -= 0.003 * n.y * heat;
      if (drag && drag.node === n) { n.vx = n.vy = 0; continue; }
      const speed = Math.hypot(n.vx, n.vy), cap = speed > 20 ? 20 / speed : 1;
      n.x += n.vx * cap; n.y += n.vy * cap; n.vx *= 0.6; n.vy *= 0.6;
    }
    if (centre && !drag) { state.view.x += (-centre.x - state.view.x) * 0.12; state.view.y += (-centre.y - state.view.y) * 0.12; }
    heat *= 0.985; draw();
    frame = heat > 0.02 ? requestAnimationFrame(step) : 0;
  }
  function draw() {
    const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
    if (canvas.width !== w * ratio || canvas.height !== h * ratio) { canvas.width = w * ratio; canvas.height = h * ratio; }
    const style = getComputedStyle(document.body), ink = style.getPropertyValue("--ink"), soft = style.getPropertyValue("--soft"), back = style.getPropertyValue("--back");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0); pen.clearRect(0, 0, w, h);
    pen.setTransform(ratio * state.view.k, 0, 0, ratio * state.view.k, ratio * (w / 2 + state.view.x * state.view.k), ratio * (h / 2 + state.view.y * state.view.k));
    pen.textAlign = "center"; pen.textBaseline = "middle";
    const seen = new Map();
    for (const e of state.edges.values()) {
      const a = state.nodes.get(e.s), b = e.o && state.nodes.get(e.o);
      if (!a || !b || !visible(e)) continue;
      const key = e.s < e.o ? e.s + "\n" + e.o : e.o + "\n" + e.s, turn = seen.get(key) || 0; seen.set(key, turn + 1);
      const bend = (turn % 2 ? -1 : 1) * Math.ceil(turn / 2) * 26 * (e.s < e.o ? 1 : -1), dx = b.x - a.x, dy = b.y - a.y, d = Math.hypot(dx, dy) + 0.1;
      const mx = (a.x + b.x) / 2 - dy / d * bend, my = (a.y + b.y) / 2 + dx / d * bend, shown = e.sources.find((s) => !state.off.has(s));
      pen.strokeStyle = pen.fillStyle = colour(shown); pen.globalAlpha = e.id === state.chosen ? 1 : 0.35 + 0.45 * e.confidence;
      pen.lineWidth = e.id === state.chosen ? 4 : 1.6; pen.setLineDash(e.status === "stated" ? [] : [5, 4]);
      pen.beginPath(); pen.moveTo(a.x, a.y); pen.quadraticCurveTo(2 * mx - (a.x + b.x) / 2, 2 * my - (a.y + b.y) / 2, b.x, b.y); pen.stroke(); pen.setLineDash([]);
      const t = Math.atan2(b.y - my, b.x - mx), ex = b.x - 9 * Math.cos(t), ey = b.y - 9 * Math.sin(t);
      pen.beginPath(); pen.moveTo(ex, ey); pen.lineTo(ex - 8 * Math.cos(t - 0.4), ey - 8 * Math.sin(t - 0.4)); pen.lineTo(ex - 8 * Math.cos(t + 0.4), ey - 8 * Math.sin(t + 0.4)); pen.fill();
      if (state.edges.size < 80 || e.id === state.chosen) { pen.globalAlpha = 1; pen.font = "11px system-ui, sans-serif"; label(e.p, mx, my, soft, back); }
    }
    pen.globalAlpha = 1;
    for (const n of state.nodes.values()) {
      pen.beginPath(); pen.arc(n.x, n.y, n.id === state.centre ? 9 : 6, 0, 7); pen.fillStyle = n.id === state.centre ? ink : soft; pen.fill();
      pen.font = (n.id === state.centre ? "600 " : "") + "12.5px system-ui, sans-serif"; label(n.label, n.x, n.y + 16, ink, back);
    }
  }
  function label(text, x, y, ink, back) {
    const short = text.length > 32 ? text.slice(0, 31) + "…" : text;
    pen.lineWidth = 4; pen.strokeStyle = back; pen.lineJoin = "round"; pen.strokeText(short, x, y); pen.fillStyle = ink; pen.fillText(short, x, y);
  }
  const at = (event) => { const box = canvas.getBoundingClientRect(); return { x: (event.clientX - box.left - box.width / 2) / state.view.k - state.view.x, y: (event.clientY - box.top - box.height / 2) / state.view.k - state.view.y }; };
  const under = (p) => [...state.nodes.values()].find((n) => Math.hypot(n.x - p.x, n.y - p.y) < 14 / state.view.k);
  canvas.addEventListener("pointerdown", (event) => { const p = at(event); drag = { node: under(p) || null, last: { x: event.clientX, y: event.clientY }, moved: 0 }; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) { canvas.style.cursor = under(at(event)) ? "pointer" : "grab"; return; }
    const dx = event.clientX - drag.last.x, dy = event.clientY - drag.last.y; drag.last = { x: event.clientX, y: event.clientY }; drag.moved += Math.abs(dx) + Math.abs(dy);
    if (drag.node) { const p = at(event); drag.node.x = p.x; drag.node.y = p.y; wake(); } else { state.view.x += dx / state.view.k; state.view.y += dy / state.view.k; draw(); }
  });
  canvas.addEventListener("pointerup", () => { const done = drag; drag = null; if (done && done.node && done.moved < 5) showEntity(done.node.id); });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); state.view.k = Math.min(4, Math.max(0.2, state.view.k * Math.exp(-event.deltaY / 600))); draw(); }, { passive: false });
  addEventListener("resize", draw);

  // ---- left side, tabs, start
  async function search(q) {
    const hits = await ask.search(q), list = clear(byId("hits"));
    for (const n of hits || []) list.append(make("li", {}, make("button", { class: "link", click: () => showEntity(n.id) }, n.label, " ", make("span", { class: "kind" }, n.types.join(", ")))));
    return hits || [];
  }
  let waiting = 0;
  byId("search").addEventListener("input", (event) => { clearTimeout(waiting); waiting = setTimeout(() => search(event.target.value), 120); });
  byId("search").addEventListener("keydown", (event) => { if (event.key === "Enter") { const first = byId("hits").querySelector("button"); if (first) first.click(); } });
  byId("least").addEventListener("input", (event) => { state.least = Number(event.target.value); byId("least-shown").textContent = state.least; draw(); });
  function tab(name) {
    for (const other of ["graph", "failures"]) byId("tab-" + other).classList.toggle("on", other === name);
    byId("failures").hidden = name !== "failures"; canvas.hidden = byId("hint").hidden = name === "failures"; canvas.style.display = name === "failures" ? "none" : "";
  }
  byId("tab-graph").addEventListener("click", () => tab("graph")); byId("tab-failures").addEventListener("click", () => tab("failures"));
  async function start() {
    const stats = state.stats = await ask.stats(), c = stats.counts;
    document.title = stats.name; byId("title").textContent = stats.name;
    byId("counts").textContent = `${c.statements} statements, ${c.entities} entities, ${c.relations} relations, ${stats.sources.length} sources` + (stats.part ? `; this file holds ${stats.part} of the statements` : "");
    byId("hint").textContent = "Drag to move, wheel to zoom, click a node to go there. Dashed: not stated by a source but inferred, claimed or contested.";
    stats.sources.slice(0, 40).forEach((s, i) => {
      const item = make("li", {}, make("span", { class: "dot", colour: colour(i) }), make("span", {}, s.name), make("span", { class: "kind" }, String(s.statements)));
      item.addEventListener("click", () => { state.off.has(i) ? state.off.delete(i) : state.off.add(i); item.classList.toggle("off"); draw(); });
      byId("sources").append(item);
    });
    const failures = await ask.failures(), list = byId("failures");
    byId("tab-failures").textContent = stats.failures === null ? "Contracts" : `Contracts (${stats.failures} failures)`;
    if (stats.failures === null) list.append(make("li", {}, "No contracts were given: add --shapes or --ontology."));
    else if (!failures.length) list.append(make("li", {}, "Every contract holds."));
    for (const f of failures) list.append(make("li", { class: "row" }, make("button", { class: "link", click: () => { tab("graph"); showEntity(f.node.id); } }, f.node.label),
      make("span", { class: "bad" }, ` ${f.component} ${f.path}`), make("span", { class: "kind" }, ` ${f.value} ${f.message}`)));
    const hits = await search(""), hash = location.hash;
    if (hash === "#failures") tab("failures");
    if (hash.startsWith("#s=")) await showStatement(decodeURIComponent(hash.slice(3)), false);
    else if (hash.startsWith("#e=")) await showEntity(decodeURIComponent(hash.slice(3)), false);
    else if (hits.length) await showEntity(hits[0].id, false);
    document.body.dataset.ready = "yes";
  }
  start();
})();
