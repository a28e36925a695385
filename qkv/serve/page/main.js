// The page: tabs, the models, and what each part needs to begin.
import { ask, say } from "./ask.js";
import { begin } from "./pictures.js";
import "./texts.js";
import { word } from "./words.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function choose(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", each === tab);
    each.tabIndex = each === tab ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
  if (tab.id === "tab-models") showModels().catch(complain);
}

for (const [at, tab] of tabs.entries()) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(at + step + tabs.length) % tabs.length];
    next.focus();
    choose(next);
  });
}

const complain = (error) => say(error.message, true);
const readable = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
const SELECTS = { pictures: ["#draw-form [name=model]"], text: ["#chat-model", "#code-model"], translation: ["#translate-form [name=model]"] };

async function models() {
  return (await (await ask("/v1/models")).json()).data;
}

async function showModels() {
  const [here, memory] = [await models(), (await (await ask("/v1/memory")).json()).data];
  const loaded = Object.fromEntries(memory.map((model) => [model.name, model.bytes]));
  const rows = here.map((model) => {
    const row = document.createElement("tr");
    const taken = loaded[model.id];
    const cells = [model.id, model.kind, readable(model.bytes), taken ? readable(taken) : "–"];
    row.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    const action = taken ? "unload" : "load";
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: word(action) });
    button.setAttribute("aria-label", `${word(action)} ${model.id}`);
    button.addEventListener("click", async () => {
      button.disabled = true;
      say("");
      await ask(`/v1/models/${encodeURIComponent(model.id)}/${action}`, {}).catch(complain);
      await showModels();
    });
    row.append(document.createElement("td"));
    row.lastChild.append(button);
    return row;
  });
  document.querySelector("#models tbody").replaceChildren(...rows);
}

async function fillSelects() {
  const here = await models();
  for (const [kind, selectors] of Object.entries(SELECTS)) {
    const fitting = here.filter((model) => model.kind === kind), names = fitting.map((model) => model.id);
    for (const select of selectors.map((selector) => document.querySelector(selector))) {
      select.replaceChildren(...fitting.map(({ id, default: chosen }) => new Option(id, id, chosen, chosen)));
      if (!names.length) select.add(new Option(word("nomodel"), ""));
    }
  }
}

document.addEventListener("language", () => showModels().catch(complain));
choose(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0]);
Promise.all([fillSelects(), begin()]).catch(complain);
