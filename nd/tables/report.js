// The page's tables and colours: headings that sort, rows that can be filtered, light and dark.
// What needs no script is there without it; elements of class "js" are shown when this runs.

const kept = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* a page of a file may keep nothing */ } },
};

// ---- light and dark: as the system says, until the reader chooses

const THEMES = ["auto", "light", "dark"];

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = `colours: ${theme}`;
}

function startTheme() {
  let theme = THEMES.includes(kept.get("nd-theme")) ? kept.get("nd-theme") : "auto";
  showTheme(theme);
  document.getElementById("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    kept.set("nd-theme", theme);
    showTheme(theme);
  });
}

// ---- tables

// What a cell is sorted by: a number where it says one, NaN where a number is wanted and missing, else its text.
function keyOf(cell, kind) {
  if (kind === "text") return cell.textContent.trim().toLowerCase();
  return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
}

// Of two keys in rising order; rows without a number come last in either direction.
function compare(a, b, sign) {
  if (typeof a === "string") return sign * a.localeCompare(b, undefined, { numeric: true });
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return sign * (a - b);
}

function sortBy(button) {
  const head = button.closest("th");
  const line = [...head.parentElement.children];
  // First click: the best on top, where a column has one; names and counts from the smallest.
  const first = button.dataset.kind === "higher" ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const direction = head.getAttribute("aria-sort") === first ? other : first;
  for (const one of line) if (one.hasAttribute("aria-sort")) one.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", direction);
  const body = head.closest("table").tBodies[0];
  const place = line.indexOf(head);
  const sign = direction === "ascending" ? 1 : -1;
  const rows = [...body.rows].map((row) => [keyOf(row.cells[place], button.dataset.kind), row]);
  rows.sort(([a], [b]) => compare(a, b, sign));
  body.append(...rows.map(([, row]) => row));
}

function startFilter() {
  const field = document.getElementById("row-filter");
  const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
  const texts = rows.map((row) => [...row.cells].filter((cell) => cell.dataset.value === undefined).map((cell) => cell.textContent).join(" ").toLowerCase());
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, k) => { row.hidden = !words.every((word) => texts[k].includes(word)); });
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("row-count").textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}

for (const element of document.querySelectorAll(".js")) element.hidden = false;
for (const button of document.querySelectorAll(".sort")) button.addEventListener("click", () => sortBy(button));
startTheme();
startFilter();
