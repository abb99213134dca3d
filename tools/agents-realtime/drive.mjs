// Runs an agent of the unmodified @openai/agents-realtime package against Meridian, with its defaults and two tools.
//
// usage: drive.mjs URL RECORDINGS      URL is the WebSocket's, ws://…/v1/realtime
// Prints one JSON object; exits with 1 at the first error that the package reports.
import { readFileSync } from 'node:fs';
import { RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { z } from 'zod';

const [url, recordings] = process.argv.slice(2);
const seen = {};
const ordered = [];
const responses = [];
const truncated = [];
let audioBytes = 0;
let interruptions = 0;
let waiting = [];

const fail = (error) => {
  console.error('the package reports an error:', error?.error ?? error);
  process.exit(1);
};
const until = (kind) => new Promise((resolve) => waiting.push({ kind, resolve }));
setTimeout(() => fail(`nothing more came; seen ${JSON.stringify(seen)}`), 120_000).unref();

const order = tool({
  name: 'order_pizza',
  description: 'Orders a pizza.',
  parameters: z.object({ size: z.enum(['small', 'large']) }),
  execute: async ({ size }) => {
    ordered.push(size);
    return 'it comes at nine';
  },
});
const menu = tool({
  name: 'read_menu',
  description: 'Reads the menu.',
  parameters: z.object({}),
  // Takes a minute to say, so that there is time to interrupt it.
  execute: async () => 'one two three four five six seven '.repeat(28),
});
const agent = new RealtimeAgent({ name: 'assistant', instructions: 'Be kind.', tools: [order, menu] });
const session = new RealtimeSession(agent, { transport: 'websocket' });
session.on('error', fail);
session.on('audio', (event) => (audioBytes += event.data.byteLength));
session.on('audio_interrupted', () => (interruptions += 1));
session.on('transport_event', (event) => {
  seen[event.type] = (seen[event.type] ?? 0) + 1;
  if (event.type === 'error') fail(event);
  if (event.type === 'response.done') responses.push(event.response);
  if (event.type === 'conversation.item.truncated') truncated.push(event.item_id);
  const [now, later] = [waiting.filter((w) => w.kind === event.type), waiting.filter((w) => w.kind !== event.type)];
  waiting = later;
  for (const { resolve } of now) resolve(event);
});

// The samples of a WAV file with the usual header of 44 bytes, with silence around them.
const sound = (name) => {
  const samples = readFileSync(`${recordings}/${name}`).subarray(44);
  const all = Buffer.concat([Buffer.alloc(24_000), samples, Buffer.alloc(48_000)]);
  return all.buffer.slice(all.byteOffset, all.byteOffset + all.byteLength);
};
// Waits for `count` responses and returns the last: after a tool call the second one speaks its result.
const answers = async (count, ask) => {
  const all = responses.length + count;
  ask();
  while (responses.length < all) await until('response.done');
  return responses[all - 1];
};
// The reading of the menu, which somebody interrupts by voice at this event, and the answer to that.
const interruptedAt = async (kind) => {
  await answers(1, () => session.sendAudio(sound('menu.wav')));
  await until(kind);
  const [before, told] = [responses.length, interruptions];
  const answer = await answers(2, () => session.sendAudio(sound('stop.wav')));
  return { response: responses[before], told: interruptions > told, answer: said(answer) };
};
const updated = until('session.updated');
await session.connect({ apiKey: 'unused', url });
await updated;
const said = (response) => response.output[0].content[0].transcript;
const replies = [
  said(await answers(1, () => session.sendAudio(sound('stop.wav')))),
  said(await answers(2, () => session.sendAudio(sound('pizza.wav')))),
];
const played = await interruptedAt('response.output_audio.delta');
const item = played.response.output[0].id;
while (!truncated.includes(item)) await until('conversation.item.truncated');
const made = await interruptedAt('response.output_audio_transcript.delta');
const interrupted = {
  played: { told: played.told, truncated: true, answer: played.answer },
  made: { status: made.response.status, reason: made.response.status_details.reason, answer: made.answer },
};
replies.push(
  said(await answers(1, () => session.sendMessage('turn on the hall lights'))),
  said(await answers(2, () => session.sendMessage('order a small pizza'))),
);
session.interrupt();
// After an interruption the package retrieves items. An error of that would arrive before this update.
const retrieved = until('session.updated');
session.transport.updateSessionConfig({ instructions: 'Be kinder.' });
await retrieved;
console.log(JSON.stringify({ ordered, replies, interrupted, audioBytes, items: session.history.length, seen }));
session.close();
process.exit(0);
