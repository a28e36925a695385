// Requests to this server, what is said about them, and the last one as code that anybody can run.
import { word } from "./words.js";

const notice = document.getElementById("notice");

export function say(text, bad = false) {
  notice.textContent = text;
  notice.classList.toggle("bad", bad);
}

// The answer to a request; throws what the server says of an error.
export async function ask(path, body, { signal, method } = {}) {
  const given = body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const answer = await fetch(path, { method: method ?? (body === undefined ? "GET" : "POST"), signal, ...given });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error?.message ?? `${answer.status} ${answer.statusText}`);
  }
  return answer;
}

// The events of a stream, each an object.
export async function* stream(path, body, signal) {
  remember(path, body);
  const answer = await ask(path, { ...body, stream: true }, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// A button that starts something, one that stops it, and what happens meanwhile.
export class Work {
  constructor(stop, start) {
    [this.stop, this.start, this.running] = [stop, start, null];
    stop.addEventListener("click", () => this.running?.abort());
  }

  async run(work) {
    if (this.running) return;
    const running = (this.running = new AbortController());
    this.stop.disabled = false;
    if (this.start) this.start.disabled = true;
    say("");
    try {
      await work(running.signal);
    } catch (error) {
      say(error.name === "AbortError" ? word("stopped") : error.message, error.name !== "AbortError");
    } finally {
      this.running = null;
      this.stop.disabled = true;
      if (this.start) this.start.disabled = false;
    }
  }
}

let last = null;

export function remember(path, body) {
  last = { path, body };
  show();
}

function show() {
  const [curl, python, boto3] = ["as-curl", "as-python", "as-boto3"].map((id) => document.getElementById(id));
  if (!last) return void (curl.textContent = python.textContent = boto3.textContent = word("none"));
  const { path, body } = last, here = location.origin, json = JSON.stringify(body, null, 2);
  curl.textContent = `curl ${here}${path} \\\n  -H 'Content-Type: application/json' \\\n  -d '${json.replaceAll("'", "'\\''")}'`;
  const called = { "/v1/images/generations": "images.generate", "/v1/chat/completions": "chat.completions.create", "/v1/completions": "completions.create" }[path];
  const own = new Set(["seed", "negative_prompt", "num_inference_steps", "guidance_scale", "sampler"]);
  const [plain, extra] = [true, false].map((kept) => Object.fromEntries(Object.entries(body).filter(([name]) => own.has(name) !== kept)));
  const named = Object.entries(plain).map(([name, value]) => `    ${name}=${literal(value)},\n`).join("");
  const more = Object.keys(extra).length && path.includes("images") ? `    extra_body=${literal(extra)},\n` : "";
  python.textContent = called
    ? `import openai\n\nclient = openai.OpenAI(base_url="${here}/v1", api_key="none")\nanswer = client.${called}(\n${named}${more})\nprint(answer)`
    : `import json, urllib.request\n\nbody = json.dumps(${literal(body)}).encode()\nprint(urllib.request.urlopen("${here}${path}", body).read().decode())`;
  boto3.textContent = `import boto3, json\n\nclient = boto3.client("sagemaker-runtime", endpoint_url="${here}", region_name="us-east-1",\n    aws_access_key_id="none", aws_secret_access_key="none")\nanswer = client.invoke_endpoint(EndpointName=${literal(body.model || "default")}, ContentType="application/json",\n    Body=json.dumps(${literal(forSageMaker(path, body))}))\nprint(answer["Body"].read().decode())`;
}

// The same wish as JumpStart's notebooks word it.
function forSageMaker(path, body) {
  const { model, stream, partial_images, size, n, ...rest } = body;
  if (!path.includes("images")) return rest;
  const [width, height] = size ? size.split("x").map(Number) : [];
  return { ...rest, ...(width ? { width, height } : {}) };
}

function literal(value) {
  if (value === true || value === false) return value ? "True" : "False";
  if (value === null) return "None";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}

document.addEventListener("language", show);
show();
