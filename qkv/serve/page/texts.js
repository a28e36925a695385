// Chat, code, translation.
import { Work, ask, remember, stream } from "./ask.js";
import { word } from "./words.js";

// Chat: what was said is a list of messages; the page shows it.

const talk = document.getElementById("talk");
const chatForm = document.getElementById("chat-form");
const chatting = new Work(document.getElementById("chat-stop"), chatForm.querySelector("[type=submit]"));
let messages = JSON.parse(sessionStorage.messages ?? "[]");

function shown(message, at) {
  const item = document.createElement("li");
  item.className = message.role;
  item.textContent = message.content;
  if (message.role === "user") {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: word("edit") });
    button.dataset.word = "edit";
    button.addEventListener("click", () => {
      chatForm.message.value = message.content;
      messages = messages.slice(0, at);
      show();
      chatForm.message.focus();
    });
    item.append(button);
  }
  return item;
}

function show() {
  talk.replaceChildren(...messages.map(shown));
  sessionStorage.messages = JSON.stringify(messages);
}

function answer() {
  return chatting.run(async (signal) => {
    const body = { model: document.getElementById("chat-model").value, messages: [...messages] };
    const said = { role: "assistant", content: "" };
    messages.push(said);
    show();
    try {
      for await (const chunk of stream("/v1/chat/completions", body, signal)) {
        said.content += chunk.choices[0]?.delta.content ?? "";
        talk.lastChild.textContent = said.content;
      }
    } finally {
      if (!said.content) messages.pop();
      show();
    }
  });
}

chatForm.addEventListener("submit", (event) => {
  event.preventDefault();
  if (chatting.running || !chatForm.message.value.trim()) return;
  messages.push({ role: "user", content: chatForm.message.value });
  chatForm.message.value = "";
  answer();
});
chatForm.message.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  chatForm.requestSubmit();
});
document.getElementById("chat-retry").addEventListener("click", () => {
  if (chatting.running || !messages.length) return;
  if (messages.at(-1).role === "assistant") messages.pop();
  answer();
});
document.getElementById("chat-new").addEventListener("click", () => {
  chatting.running?.abort();
  messages = [];
  show();
});

// Code: the text goes on at the cursor; what stands behind it is read too, by models that can.

const editor = document.getElementById("editor");
const coding = new Work(document.getElementById("code-stop"), document.getElementById("code-go"));

function complete() {
  return coding.run(async (signal) => {
    const at = editor.selectionStart, [before, behind] = [editor.value.slice(0, at), editor.value.slice(at)];
    const body = { model: document.getElementById("code-model").value, prompt: before, max_tokens: 120, temperature: 0 };
    let text = "";
    const write = async (asked) => {
      for await (const chunk of stream("/v1/completions", asked, signal)) {
        text += chunk.choices[0]?.text ?? "";
        editor.value = before + text + behind;
        editor.selectionStart = editor.selectionEnd = at + text.length;
      }
    };
    try {
      await write(behind.trim() ? { ...body, suffix: behind } : body);
    } catch (error) {
      if (!error.message.includes("filling in the middle")) throw error;
      await write(body);
    }
    editor.focus();
  });
}

document.getElementById("code-go").addEventListener("click", complete);
editor.addEventListener("keydown", (event) => {
  if (event.ctrlKey && event.code === "Space") {
    event.preventDefault();
    complete();
  }
});

// Translation.

const translating = document.getElementById("translate-form");
translating.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { model: translating.model.value, text: translating.text.value };
  remember("/v1/translate", body);
  await new Work(document.createElement("button"), translating.querySelector("[type=submit]")).run(async (signal) => {
    translating.found.value = (await (await ask("/v1/translate", body, { signal })).json()).text;
  });
});

show();
