"use strict";
// Tables of the class `sortable`: a button in each heading, and a field that filters the rows.
// Without this script they are whole, in the order of the ranking.

const FEWEST = 5; // rows that are worth a filter

const numberOf = (text) => (text.trim() === "" ? NaN : Number(text.replaceAll(",", "")));

function valueOf(cell) {
  const shown = cell.textContent.trim();
  const number = numberOf(cell.dataset.value ?? shown);
  return Number.isNaN(number) ? shown : number;
}

// Numbers before text, in either direction: text in a column of numbers is a missing value.
function compare(first, second, direction) {
  const [a, b] = [valueOf(first), valueOf(second)];
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? direction * (a - b) : direction * a.localeCompare(b);
}

const TESTS = {
  "<=": (order) => order <= 0, ">=": (order) => order >= 0, "<": (order) => order < 0,
  ">": (order) => order > 0, "=": (order) => order === 0, "!=": (order) => order !== 0,
};

// A function of a row for a word of the filter: `batch_size=64`, `val_accuracy>0.98`, or any text.
function testOf(word, names) {
  const parts = /^(.+?)(<=|>=|!=|<|>|=)(.+)$/.exec(word);
  if (!parts) return (row) => row.textContent.toLowerCase().includes(word.toLowerCase());
  const column = names.indexOf(parts[1].toLowerCase());
  if (column < 0) return null;
  const wanted = numberOf(parts[3]);
  return (row) => {
    const value = valueOf(row.cells[column]);
    if (typeof value === "number") {
      return !Number.isNaN(wanted) && TESTS[parts[2]](value - wanted);
    }
    const order = value.localeCompare(parts[3]);
    return (parts[2] === "=" || parts[2] === "!=") && TESTS[parts[2]](order);
  };
}

function equip(table) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const names = heads.map((head) => head.textContent.trim().toLowerCase().replaceAll(" ", "_"));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const next = { ascending: "descending", descending: null }[before];
      const direction = next === undefined ? "ascending" : next; // the third click: as ranked
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (direction) head.setAttribute("aria-sort", direction);
      const sign = direction === "descending" ? -1 : 1;
      const sorted = direction
        ? [...rows].sort((a, b) => compare(a.cells[column], b.cells[column], sign))
        : rows;
      body.append(...sorted);
    });
  });
  if (rows.length < FEWEST) return;
  const tools = document.getElementById("filter-template").content.cloneNode(true);
  const [field, said] = [tools.querySelector("input"), tools.querySelector("output")];
  const filter = () => {
    const words = field.value.split(/\s+/).filter(Boolean);
    const tests = words.map((word) => testOf(word, names));
    const unknown = words.find((_, place) => tests[place] === null);
    let left = 0;
    for (const row of rows) {
      row.hidden = !tests.every((test) => test && test(row));
      left += !row.hidden;
    }
    said.textContent = unknown
      ? `no column fits ${unknown}; they are ${names.join(", ")}`
      : `${left} of ${rows.length} rows`;
  };
  field.placeholder = table.dataset.example;
  field.addEventListener("input", filter);
  filter();
  table.closest(".scroll").before(tools);
}

document.querySelectorAll("table.sortable").forEach(equip);
