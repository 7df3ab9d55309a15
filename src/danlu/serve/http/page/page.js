// The page that tries the model out. Text reaches the document only through textContent and value.
"use strict";

const WORDS = {
  en: {
    request: "Request", copyTab: "Product copy", chatTab: "Free chat", title: "Title", class: "Class", material: "Material",
    size: "Size", fit: "Fit", colour: "Colour", occasion: "Occasion", titleHint: "Linen wrap dress", classHint: "Dresses",
    materialHint: "linen", sizeHint: "petite", fitHint: "relaxed", colourHint: "navy", occasionHint: "summer",
    example: "Fill in an example", message: "Message", messageHint: "Ask anything…", clear: "Start a new conversation",
    modelName: "Model", temperature: "Temperature", maxTokens: "Longest answer", key: "API key", send: "Write", stop: "Stop", answer: "Answer",
    empty: "What the model writes appears here.", first: "First word", speed: "Speed", tokens: "Tokens", time: "Time",
    curl: "The same from a terminal", copy: "Copy", copied: "Copied", theme: "Light or dark", down: "no answer from the server",
    locked: "needs an API key", context: "tokens of context", stopped: "Stopped.", cut: "The answer reached its longest length.",
    broken: "The connection broke before the answer was finished.", nothing: "Fill in at least one field.", silent: "The model wrote nothing.",
    hello: "Hello!",
  },
  zh: {
    request: "请求", copyTab: "商品文案", chatTab: "自由对话", title: "标题", class: "品类", material: "材质",
    size: "尺码", fit: "版型", colour: "颜色", occasion: "场合", titleHint: "Linen wrap dress", classHint: "Dresses",
    materialHint: "linen", sizeHint: "petite", fitHint: "relaxed", colourHint: "navy", occasionHint: "summer",
    example: "填入示例", message: "消息", messageHint: "随便问点什么……", clear: "开始新对话",
    modelName: "模型", temperature: "温度", maxTokens: "最长回答", key: "API 密钥", send: "生成", stop: "停止", answer: "回答",
    empty: "模型写出的内容会显示在这里。", first: "首词延迟", speed: "速度", tokens: "词元", time: "用时",
    curl: "在终端里做同样的事", copy: "复制", copied: "已复制", theme: "浅色或深色", down: "服务器没有响应",
    locked: "需要 API 密钥", context: "词元上下文", stopped: "已停止。", cut: "回答已达到最长长度。",
    broken: "回答还没写完，连接就断了。", nothing: "请至少填写一项。", silent: "模型什么也没写。", hello: "你好！",
  },
};
const EXAMPLE = {
  Title: "Linen wrap dress", Class: "Dresses", Material: "linen", Size: "petite", Fit: "relaxed", Colour: "navy", Occasion: "summer",
};

const $ = (id) => document.getElementById(id);
const state = { model: null, language: "en", tab: "copy", turns: [], request: null };
const word = (key) => WORDS[state.language][key];

// What the recipe trains on: one line per filled field, in the order of the form.
function productPrompt() {
  const lines = [...$("form-copy").querySelectorAll("input")]
    .filter((input) => input.value.trim())
    .map((input) => `${input.name}: ${input.value.trim()}`);
  return lines.length ? ["Write product copy.", ...lines].join("\n") : "";
}

function question() {
  return state.tab === "copy" ? productPrompt() : $("form-chat").elements.Message.value.trim();
}

// With nothing typed: what was last sent, so that the command line shown is always one that works.
function messages() {
  const earlier = state.tab === "chat" ? state.turns : [];
  if (!question() && earlier.length) return earlier.slice(0, -1);
  return [...earlier, { role: "user", content: question() || word("hello") }];
}

function body(isStream) {
  const request = {
    model: state.model || "",
    messages: messages(),
    temperature: Number($("temperature").value),
    max_tokens: Number($("max-tokens").value),
  };
  return isStream ? { ...request, stream: true, stream_options: { include_usage: true } } : request;
}

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function showCurl() {
  const quoted = JSON.stringify(body(false)).replaceAll("'", "'\\''");
  const key = $("form-key").hidden ? "" : " -H 'authorization: Bearer YOUR_KEY'";
  $("curl").textContent = `curl ${location.origin}/v1/chat/completions -H 'content-type: application/json'${key} -d '${quoted}'`;
}

function showWords() {
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = word(element.dataset.text);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = word(element.dataset.hint);
  $("theme").setAttribute("aria-label", word("theme"));
  $("language").textContent = state.language === "zh" ? "English" : "中文";
}

// The model to ask of those that write, adapters included; a choice is offered where there are several.
function chosen(models) {
  const select = $("choose");
  const model = models.find((it) => it.id === select.value) ?? models[0];
  select.replaceChildren(...models.map((it) => new Option(it.id, it.id, false, it === model)));
  $("form-model").hidden = models.length < 2;
  return model;
}

async function showModel() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (response.status === 401) {
      $("form-key").hidden = false;
      $("model").textContent = word("locked");
      $("model").dataset.state = "wait";
      return;
    }
    const models = (await response.json()).data;
    const model = chosen(models.filter((it) => it.abilities.includes("write"))) ?? models[0];
    state.model = model.id;
    $("max-tokens").max = Math.max(16, Math.min(1024, Math.floor(model.context_length / 32) * 16));
    $("model").textContent = `${model.id} · ${model.context_length.toLocaleString()} ${word("context")}`;
    $("model").dataset.state = "ready";
    document.title = `${model.id} · danlu`;
  } catch {
    $("model").textContent = word("down");
    $("model").dataset.state = "down";
  }
  showCurl();
}

function line(kind, text) {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = text;
  $("log").append(element);
  $("log").scrollTop = $("log").scrollHeight;
  return element;
}

// An answer with its fenced code set apart; parts that did not change are left alone, so that a selection lasts.
function write(reply, text) {
  const parts = text.split(/^ {0,3}```[^\n`]*(?:\n|$)/m).map((part) => part.replace(/^\n+|\n+$/g, ""));
  parts.forEach((part, place) => {
    const element = reply.children[place] ?? reply.appendChild(document.createElement(place % 2 ? "pre" : "span"));
    if (element.textContent !== part) element.textContent = part;
  });
  while (reply.children.length > parts.length) reply.lastChild.remove();
}

function clearLog() {
  $("log").replaceChildren();
}

function clearNumbers() {
  for (const id of ["first", "speed", "tokens", "time"]) $(id).textContent = "–";
}

function emptyLog() {
  clearLog();
  clearNumbers();
  line("empty", word("empty")).dataset.text = "empty";
}

// Values of the data lines of a server-sent stream; ends at [DONE], throws what an error event says.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error(word("broken"));
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const text of lines) {
      if (!text.startsWith("data: ")) continue;
      if (text === "data: [DONE]") return;
      const event = JSON.parse(text.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

class Clock {
  constructor() {
    this.begun = performance.now();
    this.firstAt = null;
    this.tokens = 0;
  }

  piece() {
    this.firstAt ??= performance.now();
    this.tokens += 1;
    this.show();
  }

  show() {
    const now = performance.now();
    $("time").textContent = seconds(now - this.begun);
    $("tokens").textContent = String(this.tokens);
    if (this.firstAt === null) return;
    $("first").textContent = seconds(this.firstAt - this.begun);
    const writing = now - this.firstAt;
    if (this.tokens > 1 && writing > 0) $("speed").textContent = `${((this.tokens - 1) / writing * 1000).toFixed(1)} /s`;
  }
}

async function problem(response) {
  if (response.status === 401) $("form-key").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}

async function send() {
  if (state.request) return;
  const asked = question();
  if (state.tab === "copy" || !state.turns.length) clearLog();
  if (!asked) {
    line("note bad", word("nothing"));
    return;
  }
  if (state.model === null) await showModel();
  const request = body(true);
  const isChat = state.tab === "chat";
  const message = $("form-chat").elements.Message;
  const turn = isChat ? line("turn user", asked) : null;
  if (isChat) message.value = ""; // the next question can be typed meanwhile
  const reply = line("turn assistant writing", "");
  clearNumbers();
  const clock = new Clock();
  let text = "";
  const control = state.request = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  if (innerWidth <= 780) $("log").scrollIntoView({ behavior: "smooth", block: "nearest" });
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request), signal: control.signal,
    });
    if (!response.ok) throw new Error(await problem(response));
    for await (const event of events(response)) {
      const choice = event.choices[0];
      if (choice?.delta.content) {
        const isAtEnd = $("log").scrollTop + $("log").clientHeight >= $("log").scrollHeight - 40;
        text += choice.delta.content;
        write(reply, text);
        if (isAtEnd) $("log").scrollTop = $("log").scrollHeight;
        clock.piece();
      }
      if (choice?.finish_reason === "length") line("note", word("cut"));
      if (event.usage) clock.tokens = event.usage.completion_tokens;
    }
    if (!text) line("note", word("silent"));
  } catch (error) {
    if (!reply.isConnected) return; // a new conversation has begun: nothing of this one belongs there
    if (control.signal.aborted) line("note", word("stopped"));
    else line("note bad", error instanceof TypeError ? word(text ? "broken" : "down") : error.message);
    if (!text) reply.remove();
    if (!text && isChat && !message.value) {
      message.value = asked;
      turn.remove();
    }
    if (!control.signal.aborted) showModel();
  } finally {
    if (reply.isConnected) clock.show();
    if (reply.isConnected && isChat) state.turns = [...request.messages, { role: "assistant", content: text }];
    reply.classList.remove("writing");
    if (state.request === control) {
      state.request = null;
      $("send").hidden = false;
      $("stop").hidden = true;
    }
    showCurl();
  }
}

function choose(tab) {
  if (state.request) state.request.abort();
  state.tab = tab;
  state.turns = [];
  for (const name of ["copy", "chat"]) {
    $(`tab-${name}`).setAttribute("aria-selected", String(name === tab));
    $(`form-${name}`).hidden = name !== tab;
  }
  emptyLog();
  showCurl();
}

function remember(key, value) {
  try {
    localStorage.setItem(`danlu.${key}`, value);
  } catch { /* private windows forbid it; the choice then lasts as long as the page */ }
}

function recall(key) {
  try {
    return localStorage.getItem(`danlu.${key}`);
  } catch {
    return null;
  }
}

function start() {
  state.language = recall("language") || (navigator.language.startsWith("zh") ? "zh" : "en");
  const theme = recall("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  showWords();
  for (const name of ["copy", "chat"]) $(`tab-${name}`).addEventListener("click", () => choose(name));
  for (const form of document.forms) form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("send").addEventListener("click", send);
  $("stop").addEventListener("click", () => state.request?.abort());
  $("clear").addEventListener("click", () => choose("chat"));
  $("key").addEventListener("change", showModel);
  $("choose").addEventListener("change", showModel);
  $("example").addEventListener("click", () => {
    for (const [name, value] of Object.entries(EXAMPLE)) $("form-copy").elements[name].value = value;
    showCurl();
  });
  $("language").addEventListener("click", () => {
    state.language = state.language === "zh" ? "en" : "zh";
    remember("language", state.language);
    showWords();
    showModel();
  });
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    remember("theme", root.dataset.theme);
  });
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("curl").textContent);
      $("copy").textContent = word("copied");
      setTimeout(() => { $("copy").textContent = word("copy"); }, 1500);
    } catch {
      getSelection().selectAllChildren($("curl"));
    }
  });
  document.addEventListener("input", () => {
    $("temperature-shown").textContent = $("temperature").value;
    $("max-tokens-shown").textContent = $("max-tokens").value;
    showCurl();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
  });
  showModel();
}

start();
