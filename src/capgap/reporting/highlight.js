// Linked highlighting: the teacher or student that is chosen in a figure, a table or the price list
// stands out in all of them. Choosing it again, or Escape, ends it.
const chosen = { kind: null, name: null };

// The one teacher or student that a mark of a drawn figure shows; null if it shows none or several.
function shownBy(element, kind) {
  const item = element.__data__; // what Vega drew the element from; of a line, its first point
  if (!item?.mark) return null;
  const items = item.mark.marktype === "line" ? item.mark.items : [item];
  const names = new Set(items.map((each) => each.datum?.[kind] ?? null));
  return names.size === 1 ? [...names][0] : null;
}

function paint() {
  const { kind, name } = chosen;
  const set = (element, known) => {
    element.classList.toggle("faded", name !== null && known !== null && known !== name);
    element.classList.toggle("lit", name !== null && known === name);
  };
  for (const mark of document.querySelectorAll(".chart [class*='role-mark'] :is(path, line, text)")) {
    set(mark, name === null ? null : shownBy(mark, kind));
  }
  for (const row of document.querySelectorAll("[data-teacher], [data-student]")) {
    set(row, (kind && row.dataset[kind]) ?? null);
  }
  for (const button of document.querySelectorAll("button[data-kind]")) {
    const same = button.dataset.kind === kind && button.dataset.name === name;
    button.setAttribute("aria-pressed", String(same));
  }
  const note = document.getElementById("chosen");
  note.hidden = name === null;
  note.querySelector("span").textContent = name === null ? "" : `Showing the ${kind} ${name}`;
}

function choose(kind, name) {
  const same = chosen.kind === kind && chosen.name === name;
  Object.assign(chosen, same ? { kind: null, name: null } : { kind, name });
  paint();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-kind]");
  if (button) return choose(button.dataset.kind, button.dataset.name);
  if (event.target.closest("#chosen button")) return choose(chosen.kind, chosen.name);
  if (!event.target.closest(".chart")) return undefined;
  for (const kind of ["teacher", "student"]) {
    const name = shownBy(event.target, kind);
    if (name) return choose(kind, name);
  }
  return undefined;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosen.name !== null) choose(chosen.kind, chosen.name);
});
