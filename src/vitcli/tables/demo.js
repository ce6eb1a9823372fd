"use strict";

const part = (id) => document.getElementById(id);
let last = 0;

function say(text, isError) {
  part("state").textContent = text;
  part("state").className = isError ? "error" : "";
}

function row(label, score) {
  const line = document.createElement("tr");
  const cells = ["name", "number", "bar"].map((kind) => {
    const cell = document.createElement("td");
    cell.className = kind;
    line.append(cell);
    return cell;
  });
  cells[0].textContent = label;
  cells[1].textContent = `${(100 * score).toFixed(1)} %`;
  const bar = document.createElement("i");
  bar.style.width = `${100 * score}%`;
  cells[2].append(bar);
  return line;
}

function show(answer) {
  const none = answer.label === null ? [row("none of these", answer.score)] : [];
  part("labels").replaceChildren(...none, ...answer.topk.map((item) => row(item.label, item.score)));
  part("picture").src = answer.picture;
  part("where").hidden = answer.overlay === null;
  if (answer.overlay !== null) part("overlay").src = answer.overlay;
  part("answer").hidden = false;
}

async function ask(file) {
  const mine = ++last;
  say(`looking at ${file.name || "the image"} …`, false);
  try {
    const response = await fetch("predict", { method: "POST", body: file });
    const answer = await response.json();
    if (mine !== last) return;
    if (answer.error) {
      part("answer").hidden = true;
      say(`${file.name}: ${answer.error}`, true);
    } else {
      show(answer);
      say(file.name || "", false);
    }
  } catch {
    if (mine !== last) return;
    part("answer").hidden = true;
    say("vit demo does not answer: was it stopped?", true);
  }
}

function take(files) {
  const file = [...files][0];
  if (file) ask(file);
}

part("file").addEventListener("change", (event) => take(event.target.files));
document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    part("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, () => part("drop").classList.remove("over"));
}
document.addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files);
});
