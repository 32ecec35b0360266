"""The page of ``odn serve``: drop an image, see its label. Self-contained."""

import base64
import hashlib
from string import Template

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } #about { color: #555; font-size: .9rem; margin-top: 0; }
#drop { display: block; border: 2px dashed #888; border-radius: .5rem; padding: 2.5rem 1rem; text-align: center;
  cursor: pointer; }
#drop.over, #drop:focus-within { border-color: #1f5fa8; background: #f0f5fb; }
#files { position: absolute; opacity: 0; width: 1px; height: 1px; }
ul { list-style: none; padding: 0; }
li { display: flex; align-items: center; gap: 1rem; padding: .5rem 0; border-bottom: 1px solid #ddd; }
img { width: 4rem; height: 4rem; object-fit: contain; background: #eee; image-rendering: pixelated; }
.name { flex: 1; min-width: 8rem; overflow-wrap: anywhere; } .label { font-weight: 600; } .error { color: #a02020; }
"""

_SCRIPT = """
"use strict";
const drop = document.getElementById("drop"), input = document.getElementById("files");
const list = document.getElementById("results"), about = document.getElementById("about");
fetch("metadata").then((answer) => answer.json()).then((facts) => {
  about.textContent = facts.labels.length + " classes, images of " + facts.input_shape.join("x") +
    ", trained on " + facts.dataset.name + ", run by " + facts.runtime;
});
function cell(row, kind, text) {
  const part = document.createElement("span");
  part.className = kind;
  part.textContent = text;
  row.append(part);
  return part;
}
async function classify(file) {
  const row = document.createElement("li"), image = document.createElement("img");
  image.src = URL.createObjectURL(file);
  image.alt = "";
  image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
  row.append(image);
  cell(row, "name", file.name);
  const label = cell(row, "label", "...");
  list.prepend(row);
  const form = new FormData();
  form.append("files", file);
  try {
    const answer = await fetch("predict", { method: "POST", body: form });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error.message);
    const best = told.predictions[0];
    label.textContent = best.probability === null ? best.label
      : best.label + " (" + (100 * best.probability).toFixed(1) + " %)";
  } catch (error) {
    label.className = "error";
    label.textContent = error.message;
  }
}
async function classifyAll(files) { for (const file of files) await classify(file); }
input.addEventListener("change", () => { classifyAll([...input.files]); });
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") classifyAll([...event.dataTransfer.files]);
  });
}
"""

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>odn</title><link rel="icon" href="data:,">
<style>$style</style></head><body>
<h1>What is in the image?</h1>
<p id="about"></p>
<label id="drop">Drop images here, or choose files<input id="files" type="file" accept="image/*" multiple></label>
<ul id="results" aria-live="polite"></ul>
<script>$script</script>
</body></html>
""")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


PAGE = _PAGE.substitute(style=_STYLE, script=_SCRIPT)
# Nothing but this very script and style, requests to the server itself, and the images that the user dropped.
PAGE_POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
