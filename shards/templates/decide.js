// Decide in the page: tick what is to be dropped, then save decisions.csv for `pack --decisions`.
"use strict";
const rows = JSON.parse(document.getElementById("rows").textContent);
const decided = new Map(rows.map(([path, word, reason]) => [path, { word, reason }]));
const first = new Map(rows.map(([path, word]) => [path, word]));
const boxes = [...document.querySelectorAll("input[data-path]")];
const bar = document.getElementById("decide");

const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function show() {
  for (const box of boxes) box.checked = decided.get(box.dataset.path)?.word === "drop";
  let drops = 0, changed = 0;
  for (const [path, { word }] of decided) {
    drops += word === "drop";
    changed += word !== (first.get(path) ?? "keep");
  }
  bar.querySelector("output").textContent = `${drops} to drop, ${changed} changed`;
}

function decide(path, drop) {
  const before = decided.get(path) ?? { reason: "decided in the report" };
  decided.set(path, { word: drop ? "drop" : "keep", reason: before.reason });
}

for (const box of boxes) {
  box.disabled = false;
  box.addEventListener("change", () => { decide(box.dataset.path, box.checked); show(); });
}
for (const box of document.querySelectorAll("input[data-crowd]")) {
  const mark = `in crowd ${box.dataset.crowd},`;
  box.disabled = false;
  box.addEventListener("change", () => {
    for (const [path, , reason] of rows) if (reason.includes(mark)) decide(path, box.checked);
    show();
  });
}
bar.hidden = false;
bar.querySelector("button").addEventListener("click", () => {
  const lines = [...decided].sort(([a], [b]) => (a < b ? -1 : 1)).map(([path, { word, reason }]) => [path, word, reason]);
  const text = [["path", "decision", "reason"], ...lines].map((row) => row.map(cell).join(",") + "\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});
show();
