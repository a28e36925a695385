// Drawing: the form, the picture as it appears, the gallery that keeps its settings, and settings out of a PNG file.
import { Work, ask, say, stream } from "./ask.js";
import { word } from "./words.js";

const form = document.getElementById("draw-form");
const [image, caption] = [document.querySelector("#drawing img"), document.querySelector("#drawing figcaption")];
const bar = document.getElementById("draw-progress");
const gallery = document.getElementById("gallery");
const NUMBERS = ["num_inference_steps", "guidance_scale", "seed"];
const TEXTS = ["prompt", "negative_prompt", "model", "sampler", "size"];
const work = new Work(document.getElementById("draw-stop"), form.querySelector("[type=submit]"));

function wish() {
  const body = {};
  for (const name of TEXTS) if (form[name].value.trim()) body[name] = form[name].value.trim();
  for (const name of NUMBERS) if (form[name].value !== "") body[name] = Number(form[name].value);
  return body;
}

function fill(settings) {
  for (const name of [...TEXTS, ...NUMBERS]) if (settings[name] !== undefined) form[name].value = settings[name];
}

export async function draw(body) {
  await work.run(async (signal) => {
    const began = performance.now(), steps = 40;
    say(word("drawing"));
    bar.value = 0;
    const previews = Math.min((body.num_inference_steps ?? steps) - 1, steps);
    for await (const event of stream("/v1/images/generations", { ...body, partial_images: Math.max(previews, 0) }, signal)) {
      image.src = `data:image/png;base64,${event.b64_json}`;
      image.hidden = false;
      image.alt = body.prompt;
      if (event.type.endsWith("partial_image")) {
        bar.value = (event.partial_image_index + 1) / (previews + 1);
        continue;
      }
      bar.value = 1;
      const settings = { ...body, seed: event.seed, size: event.size };
      if (!form.lock.checked) form.seed.value = "";
      else form.seed.value = event.seed;
      caption.textContent = described(settings);
      const said = (event.warnings ?? []).join("; ");
      say(`${word("done")}, ${((performance.now() - began) / 1000).toFixed(1)} ${word("seconds")}${said ? `. ${said}` : ""}`);
      await keep({ settings, picture: event.b64_json, time: Date.now() });
    }
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  draw(wish());
});

const described = (settings) => `${settings.prompt} · ${settings.size ?? ""} · ${settings.seed}`;

// The gallery, kept by this browser.

const store = new Promise((resolve) => {
  const opening = indexedDB.open("qkv", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => resolve(null); // a private window: nothing is kept
});

async function kept(mode, use) {
  const base = await store;
  if (!base) return undefined;
  const asked = use(base.transaction("pictures", mode).objectStore("pictures"));
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

async function keep(entry) {
  entry.id = await kept("readwrite", (pictures) => pictures.add(entry));
  gallery.prepend(shown(entry));
}

function shown({ id, settings, picture }) {
  const item = document.createElement("li");
  const [small, text, row] = ["img", "p", "div"].map((name) => document.createElement(name));
  small.src = `data:image/png;base64,${picture}`;
  small.alt = settings.prompt;
  small.loading = "lazy";
  text.textContent = described(settings);
  row.className = "row";
  const { seed, ...others } = settings;
  const actions = {
    again: () => (fill(settings), draw(settings)),
    vary: () => (fill(others), (form.seed.value = ""), draw(others)),
    save: () => Object.assign(document.createElement("a"), { href: small.src, download: `qkv-${seed}.png` }).click(),
    remove: async () => {
      await kept("readwrite", (pictures) => pictures.delete(id));
      item.remove();
    },
  };
  for (const [name, act] of Object.entries(actions)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: word(name) });
    button.dataset.word = name;
    button.addEventListener("click", act);
    row.append(button);
  }
  item.append(small, text, row);
  return item;
}

// Settings out of a picture that is dropped here.

document.addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("over")));
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (!file) return;
  const texts = readTexts(await file.arrayBuffer());
  try {
    const told = JSON.parse(texts.qkv);
    fill({ prompt: told.prompt, negative_prompt: told.negative, model: told.model, sampler: told.sampler, size: told.size.join("x"), num_inference_steps: told.steps, guidance_scale: told.guidance, seed: told.seed });
    say(word("read"));
  } catch {
    say(word("unread"), true);
  }
});

function readTexts(buffer) {
  const [view, found] = [new DataView(buffer), {}];
  for (let at = 8; at + 12 <= view.byteLength; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...new Uint8Array(buffer, at + 4, 4));
    if (at + 12 + length > view.byteLength) break;
    if (kind === "tEXt" || kind === "iTXt") {
      const bytes = new Uint8Array(buffer, at + 8, length);
      const name = new TextDecoder("latin1").decode(bytes.subarray(0, bytes.indexOf(0)));
      const zeros = kind === "tEXt" ? 1 : 5; // iTXt: compression, method, language, translated name
      let start = bytes.indexOf(0) + (kind === "tEXt" ? 1 : 3);
      if (zeros === 5) for (let skipped = 0; skipped < 2; skipped++) start = bytes.indexOf(0, start) + 1;
      found[name] = new TextDecoder(kind === "tEXt" ? "latin1" : "utf-8").decode(bytes.subarray(start));
    }
    at += 12 + length;
  }
  return found;
}

export async function begin() {
  for (const name of (await (await ask("/v1/samplers")).json()).data) form.sampler.add(new Option(name, name));
  for (const entry of (await kept("readonly", (pictures) => pictures.getAll())) ?? []) gallery.prepend(shown(entry));
}
