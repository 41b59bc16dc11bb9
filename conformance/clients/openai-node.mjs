// The openai package of npm.
import OpenAI from "openai";

const facts = JSON.parse(process.env.CONFORMANCE);
const client = new OpenAI({ baseURL: `${facts.url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me a story about a fox." }];
const assert = (condition, text) => {
  if (!condition) throw new Error(text);
};
const shouts = (text) => text.replace(/[^A-Z]/g, "").length > text.replace(/[^a-z]/g, "").length;

async function aborted() {
  const page = await (await fetch(`${facts.url}/metrics`)).text();
  const found = page.match(/^graft_aborted_total\{reason="client_disconnect"\} (\S+)$/m);
  return found ? Number(found[1]) : 0;
}

async function check(name, work) {
  const result = { check: name };
  try {
    await work();
  } catch (error) {
    result.reason = String(error.stack ?? error);
  }
  console.log(`CHECK ${JSON.stringify(result)}`);
}

await check("a chat is answered", async () => {
  const answer = await client.chat.completions.create({ model: facts.base, messages, max_tokens: 16 });
  assert(answer.choices[0].message.content.trim(), "no text");
  assert(answer.usage.completion_tokens > 0, "no usage");
});

await check("a stream says the same", async () => {
  const asked = { model: facts.base, messages, max_tokens: 24, temperature: 0 };
  const whole = await client.chat.completions.create(asked);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  assert(text === whole.choices[0].message.content, `${text} is not the whole answer`);
});

await check("the adapter is chosen by the model's name", async () => {
  const texts = [];
  for (const model of [facts.base, facts.adapter]) {
    const asked = { model, prompt: "Once upon a time", max_tokens: 24, temperature: 0 };
    texts.push((await client.completions.create(asked)).choices[0].text);
  }
  assert(!shouts(texts[0]) && shouts(texts[1]), JSON.stringify(texts));
});

await check("an unknown model is not found", async () => {
  try {
    await client.chat.completions.create({ model: "nobody", messages });
  } catch (error) {
    assert(error instanceof OpenAI.NotFoundError, `${error}`);
    return;
  }
  throw new Error("no error");
});

await check("aborting a stream gives the request up", async () => {
  const before = await aborted();
  const stream = await client.completions.create({
    model: facts.base, prompt: "Once upon a time", max_tokens: 1900, stream: true, ignore_eos: true,
  });
  for await (const _ of stream) break;
  stream.controller.abort();
  const deadline = Date.now() + 60_000;
  while ((await aborted()) <= before) {
    assert(Date.now() < deadline, "the request was not given up");
    await new Promise((done) => setTimeout(done, 50));
  }
});
