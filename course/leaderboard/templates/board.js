"use strict";
const table = document.getElementById("board");
if (table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const chips = [...document.querySelectorAll(".chips button")];
  const rowCount = body.rows.length;
  const rows = [...body.rows].map((row) => {
    const cells = [...row.cells];
    const figures = cells.slice(2, -1).map((cell) => cell.dataset);
    return {
      row,
      rank: cells[0],
      name: cells[1].textContent.trim(),
      values: figures.map((data) => Number(data.v ?? -1)),
      ranks: figures.map((data) => Number(data.r ?? rowCount + 1)),
      entries: Number(cells.at(-1).textContent),
    };
  });
  const found = rows.map((entry) => entry.name.toLocaleLowerCase());
  const collator = new Intl.Collator(undefined, { numeric: true });
  const kinds = {
    column: (a, b, i) => b.ranks[i] - a.ranks[i] || a.values[i] - b.values[i],
    team: (a, b) => collator.compare(a.name, b.name),
    entries: (a, b) => a.entries - b.entries,
  };

  function sort(button) {
    const kind = Object.keys(kinds).find((name) => name in button.dataset);
    const column = Number(button.dataset.column);
    const header = button.closest("th") || headers[column + 2];
    const now = header.getAttribute("aria-sort");
    const first = kind === "team" ? "ascending" : "descending";
    const other = kind === "team" ? "descending" : "ascending";
    const order = now === first && button.closest("th") ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const sorted = [...rows].sort((a, b) => sign * kinds[kind](a, b, column));
    body.append(...sorted.map((entry) => entry.row));
    for (const th of headers) if (th.hasAttribute("aria-sort")) th.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", order);
    if (kind === "column") show(column);
  }

  function show(column) {
    table.dataset.on = column;
    for (const entry of rows) entry.rank.textContent = entry.ranks[column] > rowCount ? "–" : entry.ranks[column];
    for (const chip of chips) chip.setAttribute("aria-pressed", String(Number(chip.dataset.column) === column));
    document.getElementById("what").textContent = headers[column + 2].querySelector("button").dataset.what;
  }

  function filter(text) {
    const wanted = text.trim().toLocaleLowerCase();
    let count = 0;
    rows.forEach((entry, i) => {
      entry.row.hidden = !found[i].includes(wanted);
      count += !entry.row.hidden;
    });
    document.getElementById("count").textContent = count === 1 ? "1 team" : `${count.toLocaleString("en")} teams`;
  }

  for (const button of [...chips, ...table.tHead.querySelectorAll("button")]) {
    button.addEventListener("click", () => sort(button));
  }
  const find = document.getElementById("find");
  find.addEventListener("input", () => filter(find.value));
  if (find.value) filter(find.value);
}
