// What the page says, in English and Traditional Chinese.
const CHINESE = {
  tasks: "要做什麼", draw: "繪圖", chat: "對話", code: "程式碼", translate: "翻譯", models: "模型", api: "API",
  prompt: "提示詞", negative: "負面提示詞", model: "模型", sampler: "取樣器", steps: "步數", guidance: "引導強度",
  size: "尺寸", seed: "種子", lock: "固定種子", stop: "停止", progress: "進度", gallery: "圖庫",
  drop: "把 PNG 圖片拖到這裡，就能讀出它是怎麼畫的。", anew: "重新開始", message: "訊息", send: "送出", retry: "重新回答",
  editor: "程式碼；按 Ctrl+Space 從游標處續寫", complete: "續寫", text: "原文", translation: "譯文", kind: "種類",
  disk: "磁碟", memory: "記憶體", todo: "載入或卸載", asked: "您剛才做的事，寫成請求：", load: "載入", unload: "卸載",
  again: "重畫", vary: "換種子", remove: "刪除", edit: "修改", save: "下載", none: "還沒有任何請求。",
  drawing: "繪圖中…", done: "完成", stopped: "已停止", read: "已讀入設定", unread: "這張圖片沒有寫明它是怎麼畫的。",
  seconds: "秒", nomodel: "這裡沒有這種模型。",
};
const ENGLISH = {
  load: "Load", unload: "Unload", again: "Draw again", vary: "Another seed", remove: "Delete", edit: "Edit",
  save: "Save", none: "Nothing has been asked yet.", drawing: "Drawing…", done: "Done", stopped: "Stopped",
  read: "Its settings are in the form.", unread: "This picture does not say how it was drawn.", seconds: "s",
  nomodel: "No such model is here.",
};

for (const element of document.querySelectorAll("[data-word]")) ENGLISH[element.dataset.word] ??= element.textContent;
for (const element of document.querySelectorAll("[data-word-label]")) {
  ENGLISH[element.dataset.wordLabel] ??= element.getAttribute("aria-label");
}

let chinese = (localStorage.language ?? navigator.language).toLowerCase().startsWith("zh");

export const word = (name) => (chinese ? CHINESE[name] : ENGLISH[name]) ?? ENGLISH[name] ?? name;

function show() {
  document.documentElement.lang = chinese ? "zh-Hant" : "en";
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
  for (const element of document.querySelectorAll("[data-word-label]")) {
    element.setAttribute("aria-label", word(element.dataset.wordLabel));
  }
  const button = document.getElementById("language");
  button.textContent = chinese ? "English" : "中文";
  button.lang = chinese ? "en" : "zh-Hant";
}

document.getElementById("language").addEventListener("click", () => {
  chinese = !chinese;
  localStorage.language = chinese ? "zh-Hant" : "en";
  show();
  document.dispatchEvent(new Event("language"));
});
show();
