// Talks to Meridian with the unmodified openai package. Over TLS, because the package accepts no other URL.
//
// usage: drive.mjs BASE_URL RECORDINGS      BASE_URL is https://…/v1; NODE_EXTRA_CA_CERTS names the issuer of its certificate
// Prints one JSON object; exits with 1 at the first error that the package reports.
import { readFileSync } from 'node:fs';
import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';

const [baseURL, recordings] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'unused' });
const realtime = new OpenAIRealtimeWS({ model: 'gpt-realtime' }, client);
const seen = {};
let waiting = [];

const fail = (error) => {
  console.error(error);
  process.exit(1);
};
realtime.on('error', fail);
realtime.on('event', (event) => {
  seen[event.type] = (seen[event.type] ?? 0) + 1;
  const [now, later] = [waiting.filter((w) => w.kind === event.type), waiting.filter((w) => w.kind !== event.type)];
  waiting = later;
  for (const { resolve } of now) resolve(event);
});
const until = (kind) => new Promise((resolve) => waiting.push({ kind, resolve }));
setTimeout(() => fail(`nothing more came; seen ${JSON.stringify(seen)}`), 120_000).unref();

// The samples of a WAV file with the usual header of 44 bytes.
const sound = (name) => readFileSync(`${recordings}/${name}`).subarray(44);
const silence = (ms) => Buffer.alloc(48 * ms);

const created = await until('session.created');
let updated = until('session.updated');
realtime.send({
  type: 'session.update',
  session: {
    type: 'realtime',
    tools: [
      {
        type: 'function',
        name: 'order_pizza',
        description: 'Orders a pizza.',
        parameters: { type: 'object', required: ['size'], properties: { size: { enum: ['small', 'large'] } } },
      },
    ],
  },
});
updated = await updated;

// The whole utterance in one event: the package does not split audio.
let done = until('response.done');
const audio = Buffer.concat([silence(8000), sound('pizza.wav'), silence(1000)]).toString('base64');
realtime.send({ type: 'input_audio_buffer.append', audio });
const call = (await done).response.output[0];
done = until('response.done');
realtime.send({
  type: 'conversation.item.create',
  item: { type: 'function_call_output', call_id: call.call_id, output: 'it comes at nine' },
});
realtime.send({ type: 'response.create' });
const reply = (await done).response.output[0].content[0].transcript;

const closed = new Promise((resolve) => realtime.socket.on('close', resolve));
realtime.close();
const close_code = await closed;
console.log(
  JSON.stringify({
    session: created.session.id,
    tools: updated.session.tools.length,
    call: { name: call.name, arguments: JSON.parse(call.arguments) },
    reply,
    close_code,
    seen,
  }),
);
