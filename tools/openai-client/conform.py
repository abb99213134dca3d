"""Has many conversations through the unmodified openai package, and checks every event against the package's own types.

usage: conform.py BASE_URL RECORDINGS
RECORDINGS holds WAV files at 24 kHz: stop.wav, pizza.wav ("order a large pizza"), help.wav ("what can you do"),
broken.wav, at which the region's recogniser fails. Its synthesizer fails at "the engine is broken".
Prints one JSON object with the number of each event; exits with a traceback at the first event outside the protocol.
"""

import asyncio
import base64
import contextlib
import json
import sys
import wave
from collections import Counter
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy
from openai import AsyncOpenAI
from openai.types.realtime import RealtimeServerEvent
from pydantic import Field, TypeAdapter

EVENT = TypeAdapter(Annotated[RealtimeServerEvent, Field(discriminator="type")])
SECOND = 48_000
PIZZA = {
    "type": "function",
    "name": "order_pizza",
    "description": "Orders a pizza.",
    "parameters": {
        "type": "object",
        "properties": {"size": {"type": "string", "enum": ["small", "large"]}},
        "required": ["size"],
    },
}


class Talk:
    """One connection. Validates every event that arrives."""

    def __init__(self, connection, seen: Counter):
        self.connection, self.seen, self.sent = connection, seen, 0

    async def tell(self, kind: str, **fields) -> str:
        self.sent += 1
        event_id = f"mine_{self.sent}"
        await self.connection.send({"type": kind, "event_id": event_id, **fields})
        return event_id

    async def next(self) -> dict:
        raw = await asyncio.wait_for(self.connection.recv_bytes(), 60)
        event = json.loads(raw)
        EVENT.validate_python(event)
        self.seen[event["type"]] += 1
        return event

    async def until(self, *kinds: str, errors: bool = False) -> list[dict]:
        """Returns all events up to the first of these kinds. An unexpected error event fails the run."""
        events = []
        while True:
            event = await self.next()
            events.append(event)
            if event["type"] in kinds:
                return events
            if event["type"] == "error" and not errors:
                raise RuntimeError(event["error"])

    async def refused(self, kind: str, param: str | None, **fields) -> None:
        """Sends an invalid event: the error must name the field and the event."""
        event_id = await self.tell(kind, **fields)
        error = (await self.until("error"))[-1]["error"]
        if error["event_id"] != event_id or error["param"] != param or not error["code"]:
            raise RuntimeError(f"{kind} {fields} got {error}")

    async def update(self, **session) -> dict:
        await self.tell("session.update", session={"type": "realtime", **session})
        return (await self.until("session.updated"))[-1]["session"]

    async def audio(self, pcm: bytes, size: int = 9600) -> None:
        for start in range(0, len(pcm), size):
            piece = base64.b64encode(pcm[start : start + size]).decode()
            await self.tell("input_audio_buffer.append", audio=piece)

    async def write(self, text: str, **fields) -> None:
        content = [{"type": "input_text", "text": text}]
        await self.tell("conversation.item.create", item={"type": "message", "role": "user", "content": content}, **fields)

    async def answer(self, **response) -> dict:
        await self.tell("response.create", response=response)
        return (await self.until("response.done"))[-1]["response"]


def text_of(response: dict) -> str:
    content = response["output"][0]["content"][0]
    return content.get("transcript") or content.get("text") or ""


def check(holds: bool, what: object) -> None:
    if not holds:
        raise RuntimeError(f"not as it should be: {what}")


async def spoken_turns(talk: Talk, sounds: dict[str, bytes]) -> None:
    await talk.audio(bytes(SECOND // 2) + sounds["stop"] + bytes(SECOND))
    events = await talk.until("response.done")
    check(text_of(events[-1]["response"]) == "okay", events[-1])
    # After the end of an utterance the buffer holds only the noise of the room, so there is nothing to commit.
    await talk.audio(bytes(SECOND // 2))
    await talk.refused("input_audio_buffer.commit", "audio")
    # The client commits before the detector has found the end of the speech, and asks for the response itself.
    await talk.audio(bytes(SECOND // 2) + sounds["stop"])
    await talk.until("input_audio_buffer.speech_started")
    await talk.tell("input_audio_buffer.commit")
    check(text_of(await talk.answer()) == "okay", "a committed turn")
    await talk.tell("input_audio_buffer.clear")
    await talk.until("input_audio_buffer.cleared")
    # Minutes of audio in one event, nearly as large as the protocol allows.
    await talk.audio(bytes(220 * SECOND) + sounds["stop"] + bytes(SECOND), size=1 << 30)
    await talk.until("response.done")


async def manual_turns(talk: Talk, sounds: dict[str, bytes]) -> None:
    session = await talk.update(audio={"input": {"turn_detection": None}})
    check(session["audio"]["input"]["turn_detection"] is None, session)
    await talk.audio(sounds["stop"])
    await talk.tell("input_audio_buffer.commit")
    check(text_of(await talk.answer()) == "okay", "a manual turn")
    voice = {"type": "input_audio", "audio": base64.b64encode(sounds["stop"]).decode()}
    await talk.tell("conversation.item.create", item={"type": "message", "role": "user", "content": [voice]})
    check(text_of(await talk.answer()) == "okay", "a recorded turn")


async def written_turns(talk: Talk, _sounds: dict[str, bytes]) -> None:
    await talk.update(output_modalities=["text"], instructions="be kind", max_output_tokens="inf", tracing="auto")
    await talk.write("turn on the hall lights")
    response = await talk.answer()
    check(text_of(response) == "the hall lights are on", response)
    check(response["usage"]["total_tokens"] > 0 and response["conversation_id"], response)
    item = response["output"][0]["id"]
    await talk.tell("conversation.item.retrieve", item_id=item)
    retrieved = (await talk.until("conversation.item.retrieved"))[-1]["item"]
    check(retrieved["content"] == response["output"][0]["content"], retrieved)
    await talk.tell("conversation.item.delete", item_id=item)
    await talk.until("conversation.item.deleted")
    await talk.write("stop", previous_item_id="root")
    await talk.until("conversation.item.done")
    check(text_of(await talk.answer(output_modalities=["audio"])) == "okay", "spoken after all")
    for role, kind in [("system", "input_text"), ("developer", "input_text"), ("assistant", "output_text")]:
        content = [{"type": kind, "text": "as it was"}]
        await talk.tell("conversation.item.create", item={"type": "message", "role": role, "content": content})
        await talk.until("conversation.item.done")


async def functions(talk: Talk, sounds: dict[str, bytes]) -> None:
    session = await talk.update(tools=[PIZZA], tool_choice="auto")
    check(session["tools"][0]["name"] == "order_pizza" and session["tool_choice"] == "auto", session)
    await talk.audio(bytes(SECOND // 2) + sounds["pizza"] + bytes(SECOND))
    events = await talk.until("response.done")
    (call,) = events[-1]["response"]["output"]
    check(call["name"] == "order_pizza" and json.loads(call["arguments"]) == {"size": "large"}, call)
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": '{"message": "it comes at nine"}'}
    await talk.tell("conversation.item.create", item=output)
    check(text_of(await talk.answer()) == "it comes at nine", "what came of the call")
    await talk.write("hello")
    (call,) = (await talk.answer(tool_choice={"type": "function", "name": "order_pizza"}))["output"]
    check(call["type"] == "function_call", call)
    await talk.tell("conversation.item.retrieve", item_id=call["id"])
    await talk.until("conversation.item.retrieved")


async def ask_for_a_speech(talk: Talk) -> None:
    """Asks for a reply so long that the stack still produces it when the client receives its first event."""
    call = {"type": "function_call", "call_id": "call_1", "name": "read", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "one two three four five six seven " * 30}
    await talk.tell("conversation.item.create", item=call)
    await talk.tell("conversation.item.create", item=output)
    await talk.tell("response.create")
    await talk.until("response.output_audio_transcript.delta")


async def interruptions(talk: Talk, sounds: dict[str, bytes]) -> None:
    await ask_for_a_speech(talk)
    await talk.tell("response.cancel")
    response = (await talk.until("response.done"))[-1]["response"]
    check(response["status"] == "cancelled", response["status"])
    (item,) = response["output"]
    check(item["status"] == "incomplete" and len(text_of(response).split()) < 200, item)
    # The user interrupts the reply.
    await ask_for_a_speech(talk)
    await talk.audio(bytes(SECOND // 2) + sounds["stop"] + bytes(SECOND), size=1 << 30)
    events = await talk.until("response.done")
    response = events[-1]["response"]
    check(response["status_details"]["reason"] == "turn_detected", response["status_details"])
    (item,) = response["output"]
    await talk.refused("conversation.item.truncate", "audio_end_ms", item_id=item["id"], content_index=0, audio_end_ms=10**6)
    await talk.tell("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=0)
    events = await talk.until("response.done", "conversation.item.truncated")
    while len([event for event in events if event["type"] in ("response.done", "conversation.item.truncated")]) < 2:
        events += await talk.until("response.done", "conversation.item.truncated")


async def beside_the_conversation(talk: Talk, _sounds: dict[str, bytes]) -> None:
    content = [{"type": "input_text", "text": "turn on the hall lights"}]
    response = await talk.answer(
        conversation="none",
        metadata={"topic": "lights"},
        output_modalities=["text"],
        instructions="answer in one word",
        input=[{"type": "message", "role": "user", "content": content}],
    )
    check(response["metadata"] == {"topic": "lights"} and response["conversation_id"] is None, response)
    check(text_of(response) == "the hall lights are on", response)


async def failures(talk: Talk, sounds: dict[str, bytes]) -> None:
    """The region's engines fail: the protocol's error events tell it, and the next turn works."""
    await talk.audio(bytes(SECOND // 2) + sounds["broken"] + bytes(SECOND))
    events = await talk.until("response.done")
    failed = [event for event in events if event["type"] == "conversation.item.input_audio_transcription.failed"]
    check(len(failed) == 1 and failed[0]["error"]["code"] and failed[0]["error"]["message"], events)
    response = events[-1]["response"]
    check(response["status"] == "failed" and response["status_details"]["error"]["code"], response)
    # The synthesizer may fail before or after the client has received the first event of the reply.
    call = {"type": "function_call", "call_id": "call_1", "name": "read", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "the engine is broken"}
    await talk.tell("conversation.item.create", item=call)
    await talk.tell("conversation.item.create", item=output)
    events = await ended(talk)
    response = events[-1]["response"]
    check(response["status"] == "failed" and response["status_details"]["error"]["type"] == "server_error", response)
    check(all(item["status"] == "incomplete" for item in response["output"]), response)
    # A response outside the conversation fails too, with an error of its own.
    voice = {"type": "input_audio", "audio": base64.b64encode(sounds["broken"]).decode()}
    item = {"type": "message", "role": "user", "content": [voice]}
    response = await talk.answer(conversation="none", input=[item])
    check(response["status"] == "failed", response)
    await talk.audio(bytes(SECOND // 2) + sounds["stop"] + bytes(SECOND))
    check(text_of((await talk.until("response.done"))[-1]["response"]) == "okay", "the next turn")


async def ended(talk: Talk) -> list[dict]:
    await talk.tell("response.create")
    return await talk.until("response.done")


async def refusals(talk: Talk, _sounds: dict[str, bytes]) -> None:
    for param, session in [
        ("session.modalities", {"modalities": ["text"]}),
        ("session.input_audio_format", {"input_audio_format": "g711_ulaw"}),
        ("session.turn_detection", {"turn_detection": None}),
        ("session.type", {"type": "translation"}),
        ("session.audio.input.format", {"audio": {"input": {"format": {"type": "audio/opus"}}}}),
        ("session.audio.input.transcription.language", {"audio": {"input": {"transcription": {"language": "de"}}}}),
        ("session.audio.input.noise_reduction", {"audio": {"input": {"noise_reduction": {"type": "near_field"}}}}),
        ("session.audio.input.transcription.model", {"audio": {"input": {"transcription": {"model": "whisper-1"}}}}),
        ("session.audio.input.turn_detection.idle_timeout_ms",
         {"audio": {"input": {"turn_detection": {"type": "server_vad", "idle_timeout_ms": 6000}}}}),
        ("session.audio.output.voice", {"audio": {"output": {"voice": "marin"}}}),
        ("session.include", {"include": ["item.input_audio_transcription.logprobs"]}),
        ("session.max_output_tokens", {"max_output_tokens": 500}),
        ("session.reasoning", {"reasoning": {"effort": "low"}}),
        ("session.tracing", {"tracing": {"workflow_name": "night shift"}}),
        ("session.tools[0].type", {"tools": [{"type": "mcp", "server_label": "x"}]}),
    ]:
        await talk.refused("session.update", param, session=session)
    await talk.refused("session.update", "session")
    await talk.refused("input_audio_buffer.append", "audio")
    await talk.refused("session.explode", "type")
    await talk.refused("conversation.item.retrieve", "item_id", item_id="nobody")
    await talk.refused("response.cancel", "response_id")
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "stop"}]}
    await talk.refused("conversation.item.create", "previous_item_id", item=item, previous_item_id="nobody")


def law_of(pcm: bytes, is_mu: bool) -> bytes:
    """G.711 of 24 kHz samples: every third one, as the nearest of the 256 values. Numpy searches them, so that no code of Meridian is its own judge."""
    codes = numpy.arange(256)
    flipped = (~codes & 0xFF) if is_mu else codes ^ 0x55
    segment, step = (flipped >> 4) & 7, flipped & 0x0F
    if is_mu:
        size = (((step << 3) + 0x84) << segment) - 0x84
        values = numpy.where(flipped & 0x80, -size, size)
    else:
        size = numpy.where(segment == 0, (step << 4) + 8, ((step << 4) + 0x108) << numpy.maximum(segment - 1, 0))
        values = numpy.where(flipped & 0x80, size, -size)
    order = numpy.argsort(values, kind="stable")
    samples = numpy.frombuffer(pcm, dtype="<i2")[::3]
    above = numpy.clip(numpy.searchsorted(values[order], samples), 1, 255)
    is_below = samples - values[order][above - 1] < values[order][above] - samples
    return order[above - is_below].astype(numpy.uint8).tobytes()


async def telephones(talk: Talk, sounds: dict[str, bytes]) -> None:
    for kind in ("audio/pcmu", "audio/pcma"):
        form = {"format": {"type": kind}}
        session = await talk.update(audio={"input": form, "output": form})
        check([session["audio"][way]["format"] for way in ("input", "output")] == [{"type": kind}] * 2, session)
        spoken = law_of(bytes(SECOND // 2) + sounds["stop"] + bytes(SECOND), kind == "audio/pcmu")
        await talk.audio(spoken, size=160)
        events = await talk.until("response.done")
        check(text_of(events[-1]["response"]) == "okay", events[-1])
        reply = b"".join(base64.b64decode(event["delta"]) for event in events if event["type"] == "response.output_audio.delta")
        # Usage counts 20 tokens for a second of speech, which has 8,000 bytes.
        tokens = events[-1]["response"]["usage"]["output_token_details"]["audio_tokens"]
        check(abs(len(reply) / 8_000 - tokens / 20) < 0.06, [len(reply), tokens])
    # A response may have a format of its own.
    await talk.write("stop")
    response = await talk.answer(audio={"output": {"format": {"type": "audio/pcm", "rate": 24_000}}})
    check(response["audio"]["output"]["format"]["type"] == "audio/pcm", response)


async def only_transcribed(talk: Talk, sounds: dict[str, bytes]) -> None:
    await talk.tell("session.update", session={"type": "transcription", "audio": {"input": {"transcription": {"language": "en"}}}})
    session = (await talk.until("session.updated"))[-1]["session"]
    check(session["type"] == "transcription" and "output" not in session["audio"], session)
    for _ in range(2):
        await talk.audio(bytes(SECOND // 2) + sounds["stop"] + bytes(SECOND))
        events = await talk.until("conversation.item.input_audio_transcription.completed")
        check(events[-1]["transcript"] == "stop", events[-1])
        check(not any(event["type"].startswith("response.") for event in events), [event["type"] for event in events])
    await talk.refused("response.create", "type", response={})
    # From here on it answers.
    await talk.update()
    await talk.write("stop")
    check(text_of(await talk.answer()) == "okay", "an answer")


CONVERSATIONS = [
    spoken_turns,
    telephones,
    only_transcribed,
    manual_turns,
    written_turns,
    functions,
    interruptions,
    beside_the_conversation,
    failures,
    refusals,
]


class Cable:
    """A relay to the server that the test can cut."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self.host, self.port, self.writers = parts.hostname, parts.port, []

    async def __aenter__(self) -> str:
        self.server = await asyncio.start_server(self.plug, "127.0.0.1")
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def plug(self, reader, writer) -> None:
        there, back = await asyncio.open_connection(self.host, self.port)
        self.writers += [writer, back]
        await asyncio.gather(self.pump(reader, back), self.pump(there, writer))

    async def pump(self, reader, writer) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers = []

    async def __aexit__(self, *_) -> None:
        self.cut()
        self.server.close()


async def reconnects(url: str, seen: Counter) -> None:
    """The connection breaks, and the package's own reconnection resumes the session."""
    cable = Cable(url)
    async with cable as cut_url:
        client = AsyncOpenAI(base_url=cut_url, api_key="unused")
        session, codes = {}, []

        def on_reconnecting(event):
            codes.append(event.close_code)
            return {"extra_query": {"resume": session["id"]}}

        async with client.realtime.connect(model="meridian", on_reconnecting=on_reconnecting, initial_delay=0.05) as connection:
            # The package reconnects inside its iterator, so the test reads events from there.
            events = aiter(connection)

            async def until(kind: str):
                async for event in events:
                    EVENT.validate_python(event.to_dict())
                    seen[event.type] += 1
                    check(event.type != "error", event)
                    if event.type == kind:
                        return event

            session["id"] = (await until("session.created")).session.id
            await connection.session.update(session={"type": "realtime", "output_modalities": ["text"], "tools": [PIZZA]})
            await until("session.updated")

            async def timer() -> str:
                content = [{"type": "input_text", "text": "cancel the timer"}]
                await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
                await connection.response.create()
                return text_of((await until("response.done")).response.to_dict())

            content = [{"type": "input_text", "text": "set a timer for ten minutes"}]
            await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            await connection.response.create()
            await until("response.done")
            cable.cut()
            created = (await until("session.created")).session
            check(codes == [1006], codes)
            # Each connection gets a new token for the same session.
            check(created.id.split(".")[0] == session["id"].split(".")[0], created)
            check(await timer() == "timer cancelled", "the timer of before")


async def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    sounds = {}
    for path in folder.glob("*.wav"):
        with wave.open(str(path)) as recording:
            check(recording.getframerate() == 24_000, path)
            sounds[path.stem] = recording.readframes(recording.getnframes())
    seen: Counter = Counter()
    client = AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
    for conversation in CONVERSATIONS:
        async with client.realtime.connect(model="gpt-realtime") as connection:
            talk = Talk(connection, seen)
            await talk.until("session.created")
            try:
                await conversation(talk, sounds)
            except Exception as error:
                raise RuntimeError(f"in {conversation.__name__}") from error
    await reconnects(url, seen)
    print(json.dumps(dict(sorted(seen.items()))))


asyncio.run(main())
