// The status page: asks its learner for the newest figures once a second, and for the charts now and then.
"use strict";

const STATUS_EVERY = 1000, HISTORY_EVERY = 5000, LOST_AFTER = 5000, MOST_ROWS = 200;

// --- How figures are written

const plain = digits => value => value === null || value === undefined ? "–"
  : value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: Math.abs(value) < 100 ? digits : 0 });
const whole = plain(0);
const percent = value => value === null || value === undefined ? "–" : `${(100 * value).toFixed(0)}%`;
const bytes = value => {
  if (value === null || value === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at++) value /= 1000;
  return `${value.toFixed(at && value < 100 ? 1 : 0)} ${units[at]}`;
};
const rate = value => value === null || value === undefined ? "–" : `${bytes(value)}/s`;
const duration = seconds => {
  if (seconds === null || seconds === undefined) return "–";
  const [d, h, m, s] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, Math.floor(seconds % 60)];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${s} s` : `${seconds < 10 ? seconds.toFixed(1) : s} s`;
};

const sentence = text => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

const $ = id => document.getElementById(id);
const element = (name, text, attributes = {}) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };

// --- Now

const FIGURES = [
  ["trained steps", f => whole(f.env_steps)],
  ["steps/s", f => whole(f.steps_per_second)],
  ["mean return, 100 episodes", f => plain(1)(f.mean_return_100)],
  ["episodes", f => whole(f.episodes)],
  ["updates", f => whole(f.learner_updates)],
  ["version", f => whole(f.parameter_version)],
  ["actors", f => whole(f.actors)],
  ["policy lag, mean (most)", f => `${plain(1)(f.policy_lag_mean)} (${whole(f.policy_lag_max)})`],
  ["queue", (f, run) => `${whole(f.queued_trajectories)} of ${whole(run.queue_capacity)}`],
  ["learner waits", f => percent(f.learner_wait_fraction)],
  ["actors wait", f => percent(f.actor_wait_fraction)],
  ["in, out", f => `${rate(f.bytes_received_per_second)}, ${rate(f.bytes_sent_per_second)}`],
  ["dropped steps", f => whole(f.steps_dropped)],
  ["skipped updates", f => whole(f.skipped_updates), f => f.skipped_updates > 0],
  ["newest checkpoint", f => f.checkpoint_age_seconds === null ? "none" : `${duration(f.checkpoint_age_seconds)} old`],
  ["disk failures", f => whole(total(f.disk_failures)), f => total(f.disk_failures) > 0],
  ["refused messages", f => whole(total(f.refused))],
  ["running for", f => duration(f.seconds)],
];
const total = counts => Object.values(counts || {}).reduce((sum, count) => sum + count, 0);

function showFigures(status) {
  const list = $("figures"), figures = status.figures;
  const named = [...FIGURES];
  const returns = figures.mean_return_100_by_task || [];
  if (returns.length > 1) returns.forEach((value, task) => named.push([`mean return, ${status.run.env[task]}`, () => plain(1)(value)]));
  named.forEach(([name, write, fault], at) => {
    let row = list.children[at];
    if (!row) {
      row = list.appendChild(element("div"));
      row.append(element("dt"), element("dd"));
    }
    setText(row.children[0], name);
    setText(row.children[1], write(figures, status.run));
    row.className = fault && fault(figures) ? "fault" : "";
  });
  $("progress").value = Math.min(1, figures.env_steps / status.run.total_steps);
}

// --- Charts

const CHARTS = [
  ["Mean return, 100 episodes", ["mean_return_100"], plain(1)],
  ["Steps/s", ["steps_per_second"], whole],
  ["Policy lag, versions", ["policy_lag_mean"], plain(1)],
  ["abs(log ratio), mean", ["log_rho_abs"], plain(3)],
  ["Ratios clipped", ["clipped_fraction"], percent],
  ["Effective sample size", ["effective_sample_size"], percent],
  ["Entropy, nats", ["entropy"], plain(3)],
  ["Value error (baseline loss)", ["baseline"], value => plain(value < 100 ? 2 : 0)(value)],
  ["Queue, share filled", ["queue_fill"], percent],
  ["Waits: learner, dashed: actors", ["learner_wait_fraction", "actor_wait_fraction"], percent],
  ["Traffic in, dashed: out", ["bytes_received_per_second", "bytes_sent_per_second"], rate],
];

function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function pathOf(times, values, low, high) {
  const first = times[0], span = times[times.length - 1] - first || 1, height = high - low || 1;
  let path = "", drawing = false;
  values.forEach((value, at) => {
    if (value === null) { drawing = false; return; }
    const x = 1000 * (times[at] - first) / span, y = 95 - 90 * (value - low) / height;
    path += `${drawing ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    drawing = true;
  });
  return path;
}

function figureFor(box, at) {
  while (box.children.length <= at) {
    const made = box.appendChild(element("figure"));
    const caption = made.appendChild(element("figcaption"));
    caption.append(element("span"), element("b"));
    made.append(svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img" }));
    made.append(element("div", undefined, { class: "scale" }));
    made.lastChild.append(element("span"), element("span"));
  }
  return box.children[at];
}

function showCharts(history) {
  const times = history.seconds;
  if (!times.length) return;
  CHARTS.forEach(([name, keys, write], at) => {
    const figure = figureFor($("charts"), at), [caption, drawing, scale] = figure.children;
    const known = keys.flatMap(key => history[key]).filter(value => value !== null);
    const low = Math.min(0, ...known), high = known.length ? Math.max(...known) : 1;
    const newest = keys.map(key => write(history[key].findLast(value => value !== null))).join(", ");
    setText(caption.children[0], name);
    setText(caption.children[1], newest);
    drawing.replaceChildren(...keys.map((key, line) =>
      svg("path", { d: pathOf(times, history[key], low, high), class: line ? "second" : "first" })));
    drawing.setAttribute("aria-label", known.length
      ? `${name}: now ${newest}; from ${write(Math.min(...known))} to ${write(high)} over ${duration(times[times.length - 1] - times[0])}` : `${name}: nothing yet`);
    setText(scale.children[0], `${write(low)} to ${write(high)}`);
    setText(scale.children[1], duration(times[times.length - 1] - times[0]));
  });
}

const DISTRIBUTIONS = [["policy_lag", "Policy lag, versions", whole], ["ratio", "Importance ratio pi/mu", value => String(value)]];

// A bar for each stretch between two bounds, the last for all above; as high as its share.
function showDistributions(distributions) {
  DISTRIBUTIONS.forEach(([key, name, write], at) => {
    const { bounds, counts } = distributions[key], all = counts.reduce((sum, count) => sum + count, 0) || 1, most = Math.max(...counts, 1);
    const figure = figureFor($("distributions"), at), [caption, drawing, scale] = figure.children, width = 1000 / counts.length;
    const stretch = bar => bar === 0 ? `up to ${write(bounds[0])}` : bar === bounds.length ? `above ${write(bounds[bar - 1])}`
      : `${write(bounds[bar - 1])} to ${write(bounds[bar])}`;
    const mode = counts.indexOf(Math.max(...counts));
    setText(caption.children[0], name);
    setText(caption.children[1], `${percent(counts[mode] / all)} ${stretch(mode)}`);
    drawing.replaceChildren(...counts.map((count, bar) => {
      const height = 95 * count / most, made = svg("rect", { x: bar * width + 8, y: 100 - height, width: width - 16, height });
      made.append(svg("title", {}));
      made.firstChild.textContent = `${stretch(bar)}: ${percent(count / all)}`;
      return made;
    }));
    drawing.setAttribute("aria-label", `${name} in the last minute: ${counts.map((count, bar) => count ? `${stretch(bar)} ${percent(count / all)}` : "").filter(Boolean).join(", ")}`);
    setText(scale.children[0], `up to ${write(bounds[0])}`);
    setText(scale.children[1], `above ${write(bounds[bounds.length - 1])}`);
  });
}

// --- Actors

const COLUMNS = [
  ["state", "state", String], ["actor", "actor", String], ["host", "host", String], ["task", "task", whole, "tasks"],
  ["environments", "envs", whole], ["version", "version", whole], ["lag", "lag", whole], ["steps_per_second", "steps/s", whole],
  ["steps", "steps", whole], ["seen_seconds_ago", "last seen", seconds => `${duration(seconds)} ago`],
  ["reconnects", "reconnects", whole], ["rejects", "rejects", whole],
];
const SICK = new Set(["silent", "refused", "late", "slow"]);
// Sick ones first, then by name.
const ORDER = { silent: 0, refused: 1, late: 2, slow: 3, ok: 4, left: 5 };
let sortedBy = "state", ascending = true, actors = [];

function compare(one, other) {
  const value = row => sortedBy === "state" ? ORDER[row.state] : row[sortedBy];
  const [a, b] = [value(one), value(other)];
  const by = typeof a === "string" && typeof b === "string" ? a.localeCompare(b, "en", { numeric: true }) : (a ?? -1) - (b ?? -1);
  return (ascending ? by : -by) || one.actor.localeCompare(other.actor, "en", { numeric: true });
}

function showHeadings() {
  $("columns").replaceChildren(...COLUMNS.map(([key, name]) => {
    const heading = element("th", undefined, { scope: "col" });
    if (key === sortedBy) heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const button = heading.appendChild(element("button", name, { type: "button" }));
    button.addEventListener("click", () => {
      [sortedBy, ascending] = [key, sortedBy === key ? !ascending : true];
      showHeadings();
      showActors();
      $("columns").children[COLUMNS.findIndex(column => column[0] === key)].firstChild.focus();
    });
    return heading;
  }));
}

function showActors() {
  const present = actors.filter(row => row.state !== "left"), sick = present.filter(row => SICK.has(row.state));
  setText($("actors-summary"), `${present.length} take part, ${sick.length} of them need a look; ${actors.length - present.length} left within the hour.`);
  const wanted = { all: actors, sick, present }[$("filter").value];
  const shown = [...wanted].sort(compare).slice(0, MOST_ROWS), body = $("rows");
  while (body.children.length > shown.length) body.lastChild.remove();
  shown.forEach((row, at) => {
    const line = body.children[at] || body.appendChild(element("tr"));
    line.className = SICK.has(row.state) ? "sick" : row.state;
    COLUMNS.forEach(([key, , write], column) => {
      const cell = line.children[column] || line.appendChild(element("td"));
      setText(cell, row[key] === null ? "–" : write(row[key]));
    });
  });
  setText($("rest"), wanted.length > shown.length ? `The first ${shown.length} of ${wanted.length}, in this order.` : "");
}

// --- Events

let newestEvent = 0;
function showEvents(events) {
  for (const event of events.filter(each => each.number > newestEvent)) {
    const at = new Date(1000 * event.at);
    const line = element("li", undefined, { class: event.level });
    line.append(element("time", at.toLocaleTimeString("en-GB"), { datetime: at.toISOString() }));
    line.append(event.level === "info" ? event.text : `${event.level}: ${event.text}`);
    $("events").prepend(line);
    newestEvent = event.number;
  }
  while ($("events").children.length > events.length) $("events").lastChild.remove();
}

// --- Asking

let heardAt = Date.now(), ended = "", process = 0;

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(LOST_AFTER) });
  if (!answer.ok) throw new Error(answer.statusText);
  return answer.json();
}

async function update() {
  try {
    const status = await ask("status.json");
    heardAt = Date.now();
    setText($("title"), `IMPALA  ${status.run.env.join(", ")}  seed ${status.run.seed}`);
    if (status.run.process !== process) {
      // Another process, after a restart: it counts its events from 1.
      process = status.run.process;
      newestEvent = 0;
      $("events").replaceChildren();
    }
    document.title = `${status.run.env.join(", ")} – IMPALA learner`;
    setText($("limit"), status.verdict.limit);
    setText($("evidence"), sentence(status.verdict.evidence));
    setText($("advice"), `Next: ${status.verdict.advice}.`);
    actors = status.actors;
    ended = status.figures.ended || "";
    if (status.figures.env_steps !== undefined) showFigures(status);
    showActors();
    if (status.distributions.ratio) showDistributions(status.distributions);
    showEvents(status.events);
  } catch (error) {
    // Said below, once it has lasted.
  }
  const lost = Date.now() - heardAt > LOST_AFTER;
  $("connection").className = lost && !ended ? "lost" : "";
  // A run that has ended answers no more, and that is as it should be.
  const silent = `no answer for ${duration((Date.now() - heardAt) / 1000)}: the figures are of before`;
  setText($("connection"), ended ? `the run has ended: ${ended}` : lost ? silent : "live");
  setTimeout(update, STATUS_EVERY);
}

async function updateCharts() {
  try {
    showCharts(await ask("history.json"));
  } catch (error) {
    // As above.
  }
  setTimeout(updateCharts, HISTORY_EVERY);
}

$("filter").addEventListener("change", showActors);
showHeadings();
update();
updateCharts();
