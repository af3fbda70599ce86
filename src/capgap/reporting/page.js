"use strict";

// Figures: the same specifications as the files beside this page, refitted to its width.
const SPECS = JSON.parse(document.getElementById("specs").textContent);
const NARROW = 560; // CSS pixels
const PANEL_LEAST = 225; // width of a panel with its axis below which panels wrap
const AXIS_ROOM = 48; // a panel's vertical axis and its gap, first guess

function sized(original, room) {
  const spec = structuredClone(original);
  const panel = spec.spec ?? spec;
  const most = Math.max(1, Math.floor(room / PANEL_LEAST));
  const columns = spec.spec ? Math.min(spec.columns, most) : 1;
  if (spec.spec) spec.columns = columns;
  panel.width = Math.floor(room / columns - AXIS_ROOM);
  if (room < NARROW) spec.config.legend.columns = 1;
  return { spec, panel, columns };
}

async function draw(box) {
  const room = box.clientWidth;
  box.dataset.room = room;
  const { spec, panel, columns } = sized(SPECS[box.dataset.chart], room);
  const options = { actions: false, renderer: "svg" };
  for (const param of spec.params ?? []) {
    if (box.view) param.value = box.view.signal(param.name); // what the reader chose stays chosen
  }
  try {
    let drawn = await vegaEmbed(box, spec, options);
    const spare = room - box.querySelector("svg").viewBox.baseVal.width;
    if (spare < 0 || spare >= columns) {
      panel.width = Math.max(60, panel.width + Math.floor(spare / columns));
      drawn = await vegaEmbed(box, spec, options);
    }
    box.view = drawn.view;
    for (const param of spec.params ?? []) {
      box.view.addSignalListener(param.name, () => box.view.runAfter(paint));
    }
    box.dataset.drawn = "true";
  } catch (error) {
    box.dataset.drawn = "failed";
    box.textContent = `This figure could not be drawn: ${error.message}`;
  }
}

const boxes = [...document.querySelectorAll("[data-chart]")];
Promise.all(boxes.map(draw)).then(() => {
  paint();
  document.documentElement.dataset.ready = "true";
});
let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const wider = boxes.filter((box) => Number(box.dataset.room) !== box.clientWidth);
    Promise.all(wider.map(draw)).then(paint);
  }, 150);
});

// The table of runs: sort by a column; show the rows in which every word of the filter begins a
// name or a number, so that 60k does not find 160k.
const table = document.getElementById("runs");
const body = table.tBodies[0];
const rows = [...body.rows];
const heads = [...table.tHead.rows[0].cells];
const texts = new Map(rows.map((row) => [row, [...row.cells].map((c) => c.textContent).join(" ")]));

function sortBy(column, descending) {
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const numeric = heads[column].classList.contains("number");
  const missing = (value) => (numeric && value === "" ? 1 : 0);
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, "en", { numeric: true });
    return missing(x) - missing(y) || (descending ? -order : order);
  });
  body.append(...rows);
  heads.forEach((head, i) => {
    if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
}

heads.forEach((head, column) => {
  head.querySelector("button").addEventListener("click", () => {
    sortBy(column, head.getAttribute("aria-sort") === "ascending");
  });
});

const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.split(/\s+/).filter(Boolean);
  const begins = words.map((word) => {
    const literal = word.replace(/[^\w]/g, "\\$&");
    return new RegExp(`(?<![a-z0-9])${literal}`, "i");
  });
  let shown = 0;
  for (const row of rows) {
    row.hidden = !begins.every((start) => start.test(texts.get(row)));
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${rows.length} runs`;
});

// The explorer: answers were computed for a grid of students and budgets; a slider looks them up.
const ANSWERS = JSON.parse(document.getElementById("answers").textContent);

function count(value) {
  const [factor, suffix] =
    value >= 1e9 ? [1e9, "B"] : value >= 1e6 ? [1e6, "M"] : value >= 1e3 ? [1e3, "k"] : [1, ""];
  return `${Number((value / factor).toPrecision(3))}${suffix}`;
}

function span(ends, write) {
  const [value, low, high] = ends.map((end) => (end === null ? "no limit" : write(end)));
  return `${value} [${low}, ${high}]`;
}

function bar(ends, most) {
  const cell = document.createElement("td");
  const [value, low, high] = ends;
  const part = (x) => `${(100 * Math.min(x, most)) / most}%`;
  const range = document.createElement("span");
  range.className = "range";
  range.style.left = part(low ?? 0);
  range.style.width = part(Math.min(high ?? most, most) - (low ?? 0));
  const mark = document.createElement("span");
  mark.className = "mark";
  mark.style.left = part(value);
  cell.className = "bar";
  cell.append(range, mark);
  return cell;
}

function above(regret) {
  if (!regret) return "unknown";
  if (regret.every((end) => end === 0)) return "the lowest";
  return regret[1] === null && regret[2] === null
    ? `${regret[0].toFixed(3)} [no interval]`
    : span(regret, (x) => x.toFixed(3));
}

function explore() {
  const student = Number(document.getElementById("ask-student").value);
  const tokens = Number(document.getElementById("ask-tokens").value);
  const answer = ANSWERS.answers[student][tokens];
  document.getElementById("said-student").textContent = count(ANSWERS.students[student]);
  document.getElementById("said-tokens").textContent = count(ANSWERS.tokens[tokens]);
  const best = answer.ranked[0][0];
  const words = [answer.abstains ? `The runs do not settle it: ${answer.abstains}.` : `Take ${best}.`];
  if (answer.star) words.push(`The best size is ${span(answer.star, count)} parameters.`);
  if (answer.beyond > 1.01) words.push(`This lies ${answer.beyond} times beyond the runs.`);
  document.getElementById("said").textContent = words.join(" ");
  const known = answer.ranked.map((row) => row[2]).filter(Boolean);
  const most = Math.max(4 * ANSWERS.tie_nats, ...known.map((ends) => ends[0])) * 1.2;
  const rows = answer.ranked.map(([name, size, regret]) => {
    const row = document.createElement("tr");
    row.dataset.teacher = name;
    for (const text of [name, count(size), above(regret)]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      cell.className = row.cells.length ? "number" : "name";
      row.append(cell);
    }
    row.append(regret ? bar(regret, most) : document.createElement("td"));
    return row;
  });
  document.getElementById("ranked").replaceChildren(...rows);
  paint();
}

if (ANSWERS) {
  for (const id of ["ask-student", "ask-tokens"]) {
    document.getElementById(id).addEventListener("input", explore);
  }
  explore();
}
