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
  try {
    await vegaEmbed(box, spec, options);
    const spare = room - box.querySelector("svg").viewBox.baseVal.width;
    if (spare < 0 || spare >= columns) {
      panel.width = Math.max(60, panel.width + Math.floor(spare / columns));
      await vegaEmbed(box, spec, options);
    }
    box.dataset.drawn = "true";
  } catch (error) {
    box.dataset.drawn = "failed";
    box.textContent = `This figure could not be drawn: ${error.message}`;
  }
}

const boxes = [...document.querySelectorAll("[data-chart]")];
Promise.all(boxes.map(draw)).then(() => {
  document.documentElement.dataset.ready = "true";
});
let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    for (const box of boxes) if (Number(box.dataset.room) !== box.clientWidth) draw(box);
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
